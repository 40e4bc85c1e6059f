"""Settings: everything that is wrong is said at once, and no value is."""

from __future__ import annotations

import os

import pytest

from runtime import config
from services.post.config import PostSettings

RIGHT = {
    "FEEDMESH_POSTGRES_DSN": "postgresql://u@h/d",
    "FEEDMESH_CURSOR_SECRET": "c" * 32,
    "FEEDMESH_MESH_SECRET": "m" * 32,
    "FEEDMESH_MEDIA_SECRET": "s" * 32,
    "FEEDMESH_GRAPH_TARGET": "127.0.0.1:1,127.0.0.1:2",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Our settings, and none of whoever runs the tests."""
    for name in list(os.environ):
        if name.upper().startswith(config.PREFIX):
            monkeypatch.delenv(name)
    for name, value in RIGHT.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def failure(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that a process prints that cannot start."""
    with pytest.raises(SystemExit) as caught:
        config.load(PostSettings)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_right_settings_are_read(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("FEEDMESH_MAX_CONCURRENT_RPCS", "7")
    environment.setenv("FEEDMESH_GRPC_ADDRESS", "[::1]:50051")
    settings = config.load(PostSettings)
    assert settings.graph_target == "127.0.0.1:1,127.0.0.1:2"
    assert (settings.max_concurrent_rpcs, settings.grpc_address) == (7, "[::1]:50051")
    assert (settings.log_level, settings.metrics_address) == ("info", "127.0.0.1:0")


def test_every_wrong_and_every_unknown_setting_has_a_line(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.delenv("FEEDMESH_POSTGRES_DSN")
    environment.setenv("FEEDMESH_CURSOR_SECRET", "hunter2")
    environment.setenv("FEEDMESH_GRPC_ADDRESS", "no address")
    environment.setenv("FEEDMESH_LOG_LEVEL", "loud")
    environment.setenv("FEEDMESH_MAX_CONCURRENT_RPCS", "many")
    environment.setenv("FEEDMESH_LOGLEVEL", "info")
    environment.setenv("feedmesh_metrics_address", "127.0.0.1:1")
    lines = failure(capsys)
    assert [line.partition(":")[0] for line in lines] == sorted(
        [
            "FEEDMESH_CURSOR_SECRET",
            "FEEDMESH_GRPC_ADDRESS",
            "FEEDMESH_LOGLEVEL",
            "FEEDMESH_LOG_LEVEL",
            "FEEDMESH_MAX_CONCURRENT_RPCS",
            "FEEDMESH_POSTGRES_DSN",
            "feedmesh_metrics_address",
        ]
    )
    for value in ("hunter2", "no address", "loud", "many"):
        assert value not in "\n".join(lines)


@pytest.mark.parametrize("secret", ["short-but-secret", "long-and-secret-" * 20, ""])
def test_a_secrets_value_is_never_printed(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], secret: str
) -> None:
    environment.setenv("FEEDMESH_CURSOR_SECRET", secret)
    [line] = failure(capsys)
    assert line.startswith("FEEDMESH_CURSOR_SECRET: ")
    assert "secret" not in line.removeprefix("FEEDMESH_CURSOR_SECRET")


@pytest.mark.parametrize("address", ["", "x", ":1", "x:", "x:y", "x:123456", "x y:1", "x:1\n", "http://x:1"])
def test_an_address_is_host_and_port(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    environment.setenv("FEEDMESH_GRPC_ADDRESS", address)
    [line] = failure(capsys)
    assert line.startswith("FEEDMESH_GRPC_ADDRESS: ")


@pytest.mark.parametrize("number", ["0", "-1"])
def test_a_bound_of_none_is_refused(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    environment.setenv("FEEDMESH_MAX_CONCURRENT_RPCS", number)
    environment.setenv("FEEDMESH_POSTGRES_POOL_SIZE", number)
    assert [line.partition(":")[0] for line in failure(capsys)] == [
        "FEEDMESH_MAX_CONCURRENT_RPCS",
        "FEEDMESH_POSTGRES_POOL_SIZE",
    ]


@pytest.mark.parametrize(
    "target",
    [
        "10.0.0.1:1",
        "127.0.0.1:1,10.0.0.1:1",
        "10.0.0.1:1,127.0.0.1:1",
        "graph:50051",
        "dns:///graph:50051",
        "localhost.example.org:1",
    ],
)
def test_calls_do_not_leave_the_machine_in_plain(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    environment.setenv("FEEDMESH_GRAPH_TARGET", target)
    [line] = failure(capsys)
    assert line.startswith("FEEDMESH_GRAPH_TARGET: calls would leave this machine without TLS")
    environment.setenv("FEEDMESH_PLAINTEXT", "true")
    assert config.load(PostSettings).graph_target == target
