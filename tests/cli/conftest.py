"""The command line as a person meets it: arguments in, exit code and two streams out."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from gradsense.cli import main
from gradsense.data.synthetic.traffic import write_fleet, write_sample
from gradsense.models.embedded import build_tokenizer
from gradsense.prompts.templates import get_template
from tests.support.once import once

#: One short run of the smallest model: three sites, four rounds.
RUN = ("--algorithm", "gsfs", "--cap", "60", "--rounds", "4", "--batch-size", "16", "--seed", "3")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def complaint(self, *parts: str, code: int = 2) -> None:
        """Check that this is one line for people, which says all of ``parts``, and no result."""
        assert self.code == code, self.err
        assert self.out == ""
        assert self.err.startswith("gradsense: ")
        assert self.err.count("\n") == 1, self.err
        assert "; " in self.err, "it says what to do"
        for part in parts:
            assert part in self.err


Command = Callable[..., Outcome]


def in_process(*args: object) -> Outcome:
    """Run the entry point with these arguments, as the installed script does."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["gradsense", *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return Outcome(code, out.getvalue(), err.getvalue())


def spawn(*args: object) -> subprocess.Popen[str]:
    """The same in a process of its own, whose streams are pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", "from gradsense.cli import main; main()", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="session")
def gradsense() -> Command:
    return in_process


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    return spawn


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small synthetic sites with labels."""
    make = partial(write_fleet, sites=3, flows=120, seed=0)
    return once(tmp_path_factory, "captures", make)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log without labels."""
    path = tmp_path_factory.mktemp("sample") / "conn.log"
    write_sample(path, flows=80, seed=0)
    return path


@dataclass(frozen=True)
class Trained:
    """A run that nothing interrupted, and what it said."""

    out: Path
    args: tuple[object, ...]
    outcome: Outcome

    @property
    def model(self) -> Path:
        return self.out / "model"


@pytest.fixture(scope="session")
def trained(fleet: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """``gradsense train --json`` in a process of its own."""
    args = ("train", "--data", fleet, *RUN)

    def make(folder: Path) -> None:
        process = spawn(*args, "--out", folder / "deep" / "run", "--json")
        said, complained = process.communicate(timeout=300)
        assert process.returncode == 0, complained
        (folder / "said.json").write_text(json.dumps([said, complained]))

    folder = once(tmp_path_factory, "trained", make)
    said, complained = json.loads((folder / "said.json").read_text())
    return Trained(folder / "deep" / "run", args, Outcome(0, said, complained))


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OPT without a classification head in the Hugging Face layout, as hubs carry them."""
    path, template = tmp_path_factory.mktemp("pretrained"), get_template("plain")
    tokenizer = build_tokenizer(template.vocabulary(), max_tokens=template.budget)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = OPTForCausalLM(
            OPTConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                ffn_dim=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=template.budget + 2,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    network.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
