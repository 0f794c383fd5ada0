"""Whether a server answers, also through the proxy that the environment names."""

import socket

import pytest
from serving import free_port

from cadence.tracking.address import check

VARIABLES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY")
BEHIND = "http://known-to-the-proxy-alone.invalid:5000"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "127.0.0.1:{}"])
def test_a_proxy_that_answers_may_know_a_name_that_this_machine_does_not(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", form.format(proxy.getsockname()[1]))

        check(BEHIND)


def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")

    with pytest.raises(ValueError, match=r": the proxy of HTTP_PROXY does not answer \("):
        check(BEHIND)


def test_a_host_that_the_proxy_is_not_for_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")

        with pytest.raises(ValueError, match=r": no MLflow server answers \(.*refused"):
            check(f"http://127.0.0.1:{free_port()}")
