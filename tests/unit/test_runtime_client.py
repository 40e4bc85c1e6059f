"""The service config that every channel is given."""

from __future__ import annotations

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2
from runtime.mesh import service_config

GRAPH = graph_pb2.DESCRIPTOR.services_by_name["GraphService"]
POST = post_pb2.DESCRIPTOR.services_by_name["PostService"]


def test_reads_are_tried_again_and_writes_and_streams_are_not() -> None:
    [reads] = service_config((GRAPH, POST))["methodConfig"]
    names = {entry["method"] for entry in reads["name"]}
    assert names == {
        "GetUser",
        "ListFollowers",
        "ListFollowing",
        "BatchGetUsers",
        "BatchGetUserIds",
        "BatchListFollowActs",
        "BatchListActs",
        "ListUserChanges",
        "BatchGetRelations",
        "GetPost",
        "ListUserPosts",
        "BatchListUserPosts",
        "ListComments",
        "BatchGetPosts",
        "CreateMedia",
        "BatchGetPublicMedia",
        "BatchGetFollowerCounts",
        "BatchListFollowerIds",
        "BatchListNewest",
        "BatchListSharers",
        "ListEngagement",
        "ListFollowerCounts",
        "ListPostCounts",
        "BatchGetEngagement",
        "CountTraces",
        "GetPostRows",
        "ListBlocks",
        "ListFollowRequests",
        "ListMutes",
        "ListPostRows",
    }
    assert reads["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]


def test_calls_go_round_healthy_replicas_within_a_budget_and_without_grpcs_own_timeout() -> None:
    config = service_config((GRAPH,))
    [[outliers]] = [policy.values() for policy in config["loadBalancingConfig"]]
    assert outliers["childPolicy"] == [{"round_robin": {}}]
    assert outliers["maxEjectionPercent"] <= 50  # whatever they answer
    assert config["healthCheckConfig"] == {"serviceName": ""}
    assert config["retryThrottling"]["maxTokens"] > 0
    assert not any("timeout" in methods for methods in config["methodConfig"])
    assert service_config(())["methodConfig"] == []
