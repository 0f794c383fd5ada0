"""Passwords that a user types: where they go, and what is left of them on the command line."""

import os

import pytest

from cadence.cli.secrets import with_secrets_in_environment


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))


@pytest.mark.parametrize(
    ("typed", "left", "name", "address"),
    [
        (
            "track.uri=http://me:pass-word@host:5000",
            "track.uri=${oc.env:CADENCE_TRACK_URI}",
            "CADENCE_TRACK_URI",
            "http://me:pass-word@host:5000",
        ),
        (
            "++track.uri='http://host?token=a=b'",
            "++track.uri=${oc.env:CADENCE_TRACK_URI}",
            "CADENCE_TRACK_URI",
            "http://host?token=a=b",
        ),
        (
            r"hydra.sweeper.storage=postgresql+psycopg://me:pass@host/db?sslmode\=require",
            "hydra.sweeper.storage=${oc.env:CADENCE_HYDRA_SWEEPER_STORAGE}",
            "CADENCE_HYDRA_SWEEPER_STORAGE",
            "postgresql+psycopg://me:pass@host/db?sslmode=require",
        ),
    ],
)
def test_a_multirun_reads_an_address_with_a_secret_in_its_environment(
    typed: str, left: str, name: str, address: str
) -> None:
    assert with_secrets_in_environment(["-m", "seed=1,2", typed]) == ["-m", "seed=1,2", left]
    assert os.environ[name] == address


@pytest.mark.parametrize(
    "arguments",
    [
        ["track.uri=http://me:pass-word@host"],
        ["--multirun", "track.uri=http://host:5000", "trainer.step_size=1,2"],
    ],
)
def test_one_run_and_what_holds_no_secret_stay_as_they_were_typed(arguments: list[str]) -> None:
    before = dict(os.environ)

    assert with_secrets_in_environment(arguments) == arguments
    assert dict(os.environ) == before
