"""Generates the package `feedmesh/` from the contracts, and checks them: `make protos` and `make lint`.

`python protos/generate.py OUT` writes the package `feedmesh` below the folder OUT; with `--lint`, `buf lint` looks at
the contracts first. `protos/` holds feedmesh's own files alone: those of Google come from the wheels of grpcio-tools
and googleapis-common-protos, and protovalidate's from the descriptor in its wheel (which carries no `.proto`).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import grpc_tools
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

PROTOS = Path(__file__).resolve().parent
INCLUDES = [
    Path(grpc_tools.__file__).parent / "_proto",
    Path(str(distribution("googleapis-common-protos").locate_file("."))),
]
VALIDATE = "buf/validate/validate.proto"


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--lint", action="store_true")
    arguments = parser.parse_args()
    # An absolute, private folder: protoc takes a path with a space, but not one with a comma or colon.
    with tempfile.TemporaryDirectory() as scratch:
        image = compile_contracts(Path(scratch))
        if arguments.lint and (code := lint(image)):
            return code
        generate(image, arguments.out)
    return 0


def compile_contracts(scratch: Path) -> Path:
    """Compiles all contracts and all that they import into one descriptor set; returns its file."""
    imports = scratch / "imports.binpb"
    own = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    descriptor_set = FileDescriptorSet()
    descriptor_set.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    # protoc takes descriptors or sources, not both, so the sources are compiled against every import's descriptor.
    third_party = scratch / "third_party.binpb"
    google_files = ["google/api/annotations.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"]
    google_files += [f"google/protobuf/{name}.proto" for name in ("timestamp", "duration", "descriptor", "field_mask")]
    includes = [f"--proto_path={path}" for path in INCLUDES]
    run_protoc([*includes, "--include_imports", f"--descriptor_set_out={third_party}", *google_files])
    google = FileDescriptorSet.FromString(third_party.read_bytes())
    imports.write_bytes(FileDescriptorSet(file=[*google.file, *descriptor_set.file]).SerializeToString())
    image = scratch / "contracts.binpb"
    keep = ["--include_imports", "--include_source_info"]
    run_protoc(
        [f"--proto_path={PROTOS}", f"--descriptor_set_in={imports}", *keep, f"--descriptor_set_out={image}", *own]
    )
    return image


def lint(image: Path) -> int:
    """Runs `buf lint` on the contracts with the rules of buf.yaml; returns its exit code."""
    buf = Path(sysconfig.get_path("scripts")) / "buf"
    return subprocess.run([buf, "lint", image, "--config", PROTOS.parent / "buf.yaml"], check=False).returncode


def generate(image: Path, out: Path) -> None:
    """Writes messages, stubs and their types below `out`/feedmesh, each folder a package."""
    files = [file.name for file in FileDescriptorSet.FromString(image.read_bytes()).file]
    own = [name for name in files if name.startswith("feedmesh/")]
    services = [name for name in own if re.search(r"^service ", (PROTOS / name).read_text(), re.MULTILINE)]
    scripts = Path(sysconfig.get_path("scripts"))
    with tempfile.TemporaryDirectory() as scratch:
        base = [f"--descriptor_set_in={image}"]
        plugins = [f"--plugin=protoc-gen-{name}={scripts / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
        run_protoc([*base, *plugins, f"--python_out={scratch}", f"--mypy_out=quiet:{scratch}", *own, VALIDATE])
        run_protoc([*base, *plugins, f"--grpc_python_out={scratch}", f"--mypy_grpc_out=quiet:{scratch}", *services])
        # protovalidate's module lives below ours: a top-level package `buf` is not ours to give.
        (Path(scratch) / "buf").rename(Path(scratch) / "feedmesh" / "buf")
        for source in sorted(Path(scratch, "feedmesh").rglob("*.py*")):
            text = re.sub(
                r"^from buf\.validate import",
                "from feedmesh.buf.validate import",
                source.read_text(),
                flags=re.MULTILINE,
            )
            target = out / source.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    for folder in [out / "feedmesh", *(path for path in (out / "feedmesh").rglob("*") if path.is_dir())]:
        if folder.name != "__pycache__":
            (folder / "__init__.py").touch()
    (out / "feedmesh" / "py.typed").touch()
    own_files = [file for file in FileDescriptorSet.FromString(image.read_bytes()).file if file.name in own]
    texts = {name: text for file in own_files for name, text in comments(file)}
    (out / "feedmesh" / "comments.json").write_text(json.dumps(texts, indent=1, sort_keys=True) + "\n")


def comments(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """Yields the full name and the comment of each thing in a contract; generated modules do not carry comments."""
    for location in file.source_code_info.location:
        if not location.leading_comments or len(location.path) % 2:
            continue
        thing: FileDescriptorProto | DescriptorProto = file
        name = file.package
        # A path is pairs of a field's number and an index: (4, 0, 2, 1) is the second field of the first message.
        for number, index in zip(location.path[::2], location.path[1::2], strict=True):
            thing = getattr(thing, thing.DESCRIPTOR.fields_by_number[number].name)[index]
            name = f"{name}.{thing.name}"
        yield name, " ".join(location.leading_comments.split())


def run_protoc(arguments: list[str]) -> None:
    """Runs protoc of the wheel; exits with its code when it fails."""
    if code := protoc.main(["protoc", *arguments]):
        sys.exit(code)


if __name__ == "__main__":
    sys.exit(main())
