"""The folder of a run: its configuration, its log, and the rules for starting and continuing one."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import gft_jax as gft
from experiments.configs.settings import OF_A_SESSION, RunSettings
from experiments.files import read_json, write_atomically
from experiments.log_sinks import Sink, sinks_of
from gft_jax.checkpoints import agreed


class RunFolder:
    """A folder ``RUN`` with config.json, metrics.jsonl, checkpoints and results.

    Of several processes the first alone writes to it.

    Args:
        path: the folder.
        sinks: where rows of the log also go.
    """

    def __init__(self, path: Path, sinks: Sequence[Sink] = ()):
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.is_writer = gft.parallel.is_main()
        self._sinks = sinks if self.is_writer else ()

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Appends rows to the log and waits until they are on disk.

        Raises:
            OSError: naming the file, if it cannot be written.
        """
        if not self.is_writer or not rows:
            return
        try:
            with self.metrics.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # which names no file
            raise OSError(
                f"the log {self.metrics} cannot be written ({error}); make room there and continue with --resume"
            ) from error
        for sink in self._sinks:
            for row in rows:
                sink.log(row)

    def log_once(self, row: dict[str, Any]) -> None:
        """Appends a row unless the log has one of the same kind, method, seed and step."""
        if not any(_identity(json.loads(line)) == _identity(row) for line in self._lines()):
            self.log([row])

    def add_session(self, seconds: float) -> None:
        """Adds the time of a session that came to its end to ``wall_seconds`` in config.json."""
        before = read_json(self.path / "config.json").get("wall_seconds", 0.0)
        self.add_facts({"wall_seconds": round(before + seconds, 1)})

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Adds entries to config.json, or replaces those of these names."""
        if not self.is_writer:
            return
        path = self.path / "config.json"
        write_atomically(path, json.dumps(read_json(path) | dict(facts), indent=2) + "\n")

    def mend(self) -> None:
        """Drops a last row that a kill cut short."""
        if self.is_writer and self.metrics.exists():
            write_atomically(self.metrics, "".join(line + "\n" for line in self._lines()))

    def rewind(self, method: str, seed: int, step: int) -> None:
        """Drops what was logged of a method beyond a step, or cut short by a kill, so that nothing is logged twice."""
        if not self.is_writer:
            return
        kept = []
        for line in self._lines():
            row = json.loads(line)
            of_method = (row.get("method"), row["seed"]) == (method, seed)
            if not (of_method and row.get("step", step + 1) > step):
                kept.append(line)
        write_atomically(self.metrics, "".join(line + "\n" for line in kept))
        for sink in self._sinks:
            sink.rewind(method, seed, step)

    def close(self) -> None:
        """Hands over to the sinks what they have not written yet."""
        for sink in self._sinks:
            sink.close()

    def _lines(self) -> list[str]:
        """The rows of the log, without one cut short by a kill."""
        lines = self.metrics.read_text().splitlines(keepends=True) if self.metrics.exists() else []
        return [line.rstrip("\n") for line in lines if line.endswith("\n")]


def open_run(
    config: RunSettings, root: Path, facts: dict[str, Any], program: str = "experiments.train"
) -> RunFolder:
    """A fresh folder, or with ``--resume`` the one that is continued.

    Says what is not as it was when a continued run began: packages or hardware. Of several processes the first alone
    looks and writes, so that they come to the same folder.

    Args:
        config: settings of the run.
        root: where numbered folders are made.
        facts: more entries of config.json.
        program: the module that is run, for the command in config.json.

    Raises:
        ValueError: if the folder holds another run (naming the fields that differ), or there is nothing to resume.
    """
    path = Path(agreed(lambda: str(_opened(config, root, facts, program))))
    return RunFolder(path, sinks_of(config.log, path))


def begun_run(config: RunSettings, root: Path) -> Path | None:
    """The folder of the run that ``--resume`` continues; None without. Of several processes the first alone looks.

    Raises:
        ValueError: if there is nothing to resume.
    """
    return Path(agreed(lambda: str(_begun(config, root)))) if config.resume else None


def _begun(config: RunSettings, root: Path) -> Path:
    path = config.out or _latest(root)
    if not (path / "config.json").exists():
        raise ValueError(
            f"nothing to resume: {path} holds no config.json; leave --resume out to start a run there"
        )
    return path


def _opened(config: RunSettings, root: Path, facts: dict[str, Any], program: str) -> Path:
    path = _begun(config, root) if config.resume else config.out
    if path is None:
        path = _fresh(root)
    elif (path / "config.json").exists():
        _check_same_run(path, config)
        _say_what_differs(path)
        RunFolder(path).mend()
        return path
    elif path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: give --out an empty or a new folder")
    elif path.exists() and any(entry.suffix != ".partial" for entry in path.iterdir()):
        raise ValueError(f"{path} is not empty and holds no run: give --out an empty or a new folder")
    path.mkdir(parents=True, exist_ok=True)
    content = {"experiment": config.experiment, **_provenance(program), **facts, "config": _settings(config)}
    text = json.dumps(content, indent=2)
    write_atomically(path / "config.json", text + "\n")
    return path


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("kind", "method", "seed", "step"))


def _settings(config: RunSettings) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(config).items() if name not in OF_A_SESSION}
    return json.loads(json.dumps(settings))


def _check_same_run(path: Path, config: RunSettings) -> None:
    theirs, ours = read_json(path / "config.json").get("config", {}), _settings(config)
    if differing := differences(theirs, ours, sorted(theirs.keys() | ours.keys())):
        raise ValueError(
            f"{path} holds another run, which differs in\n  "
            + "\n  ".join(differing)
            + "\nGive the same settings to continue it, or another --out"
        )
    if not config.resume:
        raise ValueError(
            f"{path} holds a run with these settings: add --resume to continue it, or give another --out"
        )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """What a run holds under these names and what is given now, where the two differ, in words."""
    return [
        f"{name}: there {theirs.get(name)}, here {ours.get(name)}"
        for name in names
        if theirs.get(name) != ours.get(name)
    ]


def _say_what_differs(path: Path) -> None:
    """A note, not an error: the run goes on, but its numbers may come out otherwise."""
    theirs, ours = (
        {**facts.get("versions", {}), "hardware": facts.get("hardware")}
        for facts in (read_json(path / "config.json"), _platform())
    )
    differing = [
        f"  {name}: there {theirs.get(name)}, here {ours.get(name)}"
        for name in dict.fromkeys([*theirs, *ours])
        if theirs.get(name) != ours.get(name)
    ]
    if differing:
        print(
            f"{path} was begun with other packages or hardware, so its numbers may not come out bit for bit the same:"
        )
        print("\n".join(differing))


def _numbered(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("[0-9][0-9][0-9]*") if path.name.isdigit())


def _latest(root: Path) -> Path:
    runs = [path for path in _numbered(root) if (path / "config.json").exists()]
    if not runs:
        raise ValueError(f"nothing to resume: there is no run in {root}; leave --resume out to start one")
    return max(runs, key=lambda path: int(path.name))


def _fresh(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.name) for path in _numbered(root)), default=0)
    while True:
        path = root / f"{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:  # another run started at the same moment
            number += 1
        else:
            return path


def _provenance(program: str) -> dict[str, Any]:
    arguments = " ".join(shlex.quote(argument) for argument in sys.argv[1:])
    return {
        "command": f"python -m {program} {arguments}".rstrip(),
        **_platform(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _platform() -> dict[str, Any]:
    """What a run depends on apart from its settings."""
    packages = (
        "gft_jax",
        "jax",
        "flax",
        "optax",
        "diffrax",
        "ott-jax",
        "orbax-checkpoint",
        "equinox",
        "jaxlib",
        "numpy",
        "scipy",
        "scikit-learn",
        "matplotlib",
    )
    devices = jax.local_devices()
    return {
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in packages},
        "hardware": f"{len(devices)} x {devices[0].device_kind} ({os.cpu_count()} cores, {platform.machine()})",
    }
