"""Test the judge against a real server on loopback that also fails, stalls and replies nonsense."""

import asyncio
import errno
import gzip
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import AT_ONCE, DROP, ERROR_500, Reply, Server, completion

from sft_lab.errors import RequestError
from sft_lab.evaluation.judge.judge import Judge, JudgeError

KEY = "sk-0123456789abcdef"


MakeJudge = Callable[..., Judge]


@pytest.fixture
def make_judge(server: Server, tmp_path: Path) -> MakeJudge:
    def make(**changes: Any) -> Judge:
        given = {
            "model": "judge",
            "base_url": server.url,
            "cache": tmp_path / "judgements",
            "max_tries": 2,
            "timeout_s": 5.0,
        }
        return Judge(**given | changes)

    return make


def prompts(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


def test_answers_come_in_order_and_requests_are_those_of_fastchat(
    server: Server, make_judge: MakeJudge
) -> None:
    system = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "b"}]
    assert make_judge().ask([*prompts("a"), system]) == ["a: [[7]]", "b: [[7]]"]
    asked = next(body for body in server.bodies if len(body["messages"]) == 2)
    assert asked == {"model": "judge", "messages": system, "temperature": 0, "max_tokens": 2048}


def test_parameters_can_be_left_out_and_added(server: Server, make_judge: MakeJudge) -> None:
    judge = make_judge(temperature=None, max_tokens=None, extra_body={"max_completion_tokens": 9})
    judge.ask(prompts("a"))
    assert server.bodies[0].keys() == {"model", "messages", "max_completion_tokens"}


def test_nothing_is_asked_twice(server: Server, make_judge: MakeJudge) -> None:
    make_judge().ask(prompts("a", "b", "a"))
    assert sorted(server.asked) == ["a", "b"]
    assert make_judge(temperature=0).ask(prompts("b", "a")) == ["b: [[7]]", "a: [[7]]"]
    assert sorted(server.asked) == ["a", "b"]
    make_judge(max_tokens=9).ask(prompts("a"))
    make_judge(model="other").ask(prompts("a"))
    assert len(server.asked) == 4


def test_several_answers_to_a_question_are_kept_apart(
    server: Server, make_judge: MakeJudge
) -> None:
    server.planned["a"] = [Reply(completion(f"[[{n}]]")) for n in (4, 8, 6)]
    judge = make_judge(concurrency=1)
    assert judge.ask(prompts("a")) == ["[[4]]"]
    assert judge.ask_several(prompts("a", "b"), 2) == [["[[4]]", "[[8]]"], ["b: [[7]]"] * 2]
    assert judge.ask_several(prompts("a"), 3) == [["[[4]]", "[[8]]", "[[6]]"]]
    assert sorted(server.asked) == ["a", "a", "a", "b", "b"]
    assert all(body == server.bodies[0] for body in server.bodies[:2])


def test_a_warm_cache_needs_no_endpoint(make_judge: MakeJudge) -> None:
    make_judge().ask(prompts("a"))
    elsewhere = make_judge(base_url="http://127.0.0.1:9/v1")
    assert elsewhere.ask(prompts("a")) == ["a: [[7]]"]


def test_each_judgement_is_a_file_with_its_request(make_judge: MakeJudge, tmp_path: Path) -> None:
    make_judge().ask(prompts("a", "b"))
    files = [path for path in (tmp_path / "judgements").rglob("*") if path.is_file()]
    assert len(files) == 2
    assert all(path.suffix == ".json" for path in files)
    entry = min((json.loads(path.read_text()) for path in files), key=lambda e: e["answer"])
    del entry["sha256"]
    assert entry == {
        "model": "judge",
        "messages": prompts("a")[0],
        "temperature": 0.0,
        "max_tokens": 2048,
        "answer": "a: [[7]]",
        "served_model": "judge-2026-11",
    }


def test_a_judgement_is_kept_while_others_are_awaited(
    server: Server, make_judge: MakeJudge
) -> None:
    make_judge().ask(prompts("first"))  # so that the SDK is imported
    server.planned["slow"] = [Reply(completion("late"), wait_s=60)]
    timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
    # A job in the background of a shell is started with Ctrl-C ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            make_judge(timeout_s=60).ask(prompts("slow", "a"))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert time.monotonic() - started < 2  # Ctrl-C does not wait for the server
    server.asked.clear()
    make_judge().ask(prompts("a"))
    assert server.asked == []


def test_a_damaged_judgement_is_named(make_judge: MakeJudge, tmp_path: Path) -> None:
    make_judge().ask(prompts("a"))
    (file,) = (tmp_path / "judgements").rglob("*.json")
    file.write_text(file.read_text()[:20])
    with pytest.raises(RequestError, match=f"{file.name} holds no readable judgement.*Delete it"):
        make_judge().ask(prompts("a"))


def test_a_judgement_with_a_flipped_bit_is_named(make_judge: MakeJudge, tmp_path: Path) -> None:
    make_judge().ask(prompts("a"))
    (file,) = (tmp_path / "judgements").rglob("*.json")
    file.write_text(file.read_text().replace("[[7]]", "[[6]]"))
    with pytest.raises(RequestError, match=f"{file.name} holds no readable judgement: it has chan"):
        make_judge().ask(prompts("a"))


def test_open_requests_are_limited(server: Server, make_judge: MakeJudge) -> None:
    for n in range(9):
        server.planned[str(n)] = [Reply(completion("x"), wait_s=0.03)]
    make_judge(concurrency=3).ask(prompts(*map(str, range(9))))
    assert server.most_open == 3


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(ERROR_500, id="500"),
        pytest.param(Reply(b"", 503, AT_ONCE), id="503"),
        pytest.param(Reply(b'{"error": {"message": "slow down"}}', 429, AT_ONCE), id="429"),
        pytest.param(DROP, id="dropped"),
        pytest.param(Reply(wait_s=60), id="stalled"),
        pytest.param(Reply(trickle=True), id="trickling"),
        pytest.param(Reply(b"<html>Bad gateway</html>"), id="no JSON"),
        pytest.param(Reply(b'{"error": {"message": "no provider"}}'), id="no choices"),
        pytest.param(Reply(b'{"choices": []}'), id="empty choices"),
        pytest.param(Reply(b'["choices"]'), id="a list"),
        pytest.param(Reply(b'{"choices": [{"message": null}]}'), id="no message"),
        pytest.param(Reply(completion("")), id="empty"),
        pytest.param(Reply(completion(None)), id="no content"),
    ],
)
def test_transient_failures_are_retried(
    server: Server, make_judge: MakeJudge, monkeypatch: pytest.MonkeyPatch, reply: Reply
) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)  # half a second
    server.planned["a"] = [reply]
    judge = make_judge(timeout_s=0.3 if reply.wait_s or reply.trickle else 5.0)
    assert judge.ask(prompts("a")) == ["a: [[7]]"]
    assert server.asked == ["a", "a"]


def test_retry_after_is_waited_for(server: Server, make_judge: MakeJudge) -> None:
    server.planned["a"] = [Reply(b"", 429, {"Retry-After": "0.7"})]
    make_judge().ask(prompts("a"))
    first, second = server.times
    assert second - first >= 0.7  # the first back-off is 0.5 s at most


@pytest.mark.slow
def test_waits_double(server: Server, make_judge: MakeJudge) -> None:
    server.planned["a"] = [Reply(b"", 500)] * 3
    make_judge(max_tries=4).ask(prompts("a"))
    waits = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert all(
        0.75 * most <= wait < most + 0.3 for wait, most in zip(waits, (0.5, 1, 2), strict=True)
    )


def test_after_a_failure_only_the_missing_ones_are_asked(
    server: Server, make_judge: MakeJudge, tmp_path: Path
) -> None:
    server.planned["b"] = [ERROR_500] * 3
    with pytest.raises(JudgeError) as failure:
        make_judge(max_tries=3).ask(prompts("a", "b", "c", "d"))
    message = str(failure.value)
    assert "1 of 4 judgements missing, 1 of them after up to 3 tries" in message
    assert str(tmp_path / "judgements") in message
    assert f"Judge 'judge' at {server.url}: Error code: 500 - out of memory." in message
    assert sorted(server.asked) == ["a", "b", "b", "b", "c", "d"]
    server.asked.clear()
    assert len(make_judge().ask(prompts("a", "b", "c", "d"))) == 4
    assert server.asked == ["b"]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(b"<html>", 200), r"the reply is not JSON, got '<html>'\."),
        (Reply(b"{}", 200), r"no choices\[0\]\.message, got '\{\}'"),
        (Reply(completion(" ")), "the reply is empty, with finish_reason 'stop'"),
        (DROP, "Server disconnected .* Check that it runs"),
        (Reply(b"", 429, {"Retry-After": "3600"}), "429.* Lower concurrency"),
    ],
)
def test_failures_name_reason_and_fix(
    server: Server, make_judge: MakeJudge, reply: Reply, message: str
) -> None:
    server.planned["a"] = [reply]
    with pytest.raises(JudgeError, match=message):
        make_judge(max_tries=1).ask(prompts("a"))


def test_redirects_are_not_followed(server: Server, make_judge: MakeJudge) -> None:
    elsewhere = {"Location": f"{server.url}/chat/completions"}
    server.planned["a"] = [Reply(b"", 307, elsewhere)]
    with pytest.raises(JudgeError, match=r"307\. Redirects are not followed; set base_url"):
        make_judge().ask(prompts("a"))
    assert server.asked == ["a"]


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
def test_a_reply_longer_than_any_answer_is_not_read_to_its_end(
    server: Server, make_judge: MakeJudge, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    monkeypatch.setattr("sft_lab.evaluation.endpoint.MAX_REPLY_BYTES", 2**20)
    body = completion("[[7]]" + " " * 2**21)
    server.planned["a"] = [Reply(gzip.compress(body) if headers else body, headers=headers)]
    with pytest.raises(JudgeError, match="the reply is longer than 1 MiB"):
        make_judge(max_tries=1).ask(prompts("a"))


def test_half_a_surrogate_pair_in_an_answer_is_replaced(
    server: Server, make_judge: MakeJudge
) -> None:
    server.planned["a"] = [Reply(completion("\ud800 [[7]]"))]
    assert make_judge().ask(prompts("a")) == ["? [[7]]"]


def test_a_time_out_names_its_length(server: Server, make_judge: MakeJudge) -> None:
    server.planned["a"] = [Reply(wait_s=60)]
    with pytest.raises(JudgeError, match=r"no answer within 0\.2 s\. .* raise timeout_s"):
        make_judge(max_tries=1, timeout_s=0.2).ask(prompts("a"))


def test_a_bad_request_is_not_repeated_and_does_not_stop_the_others(
    server: Server, make_judge: MakeJudge
) -> None:
    server.planned["a"] = [Reply(b'{"error": {"message": "max_tokens is not supported"}}', 400)]
    with pytest.raises(JudgeError, match=r"max_tokens is not supported\. Correct temperature"):
        make_judge(concurrency=1).ask(prompts("a", "b", "c"))
    assert server.asked == ["a", "b", "c"]


def test_a_server_that_is_down_is_not_asked_for_everything(
    server: Server, make_judge: MakeJudge
) -> None:
    names = [str(n) for n in range(20)]
    server.planned = {name: [ERROR_500] * 2 for name in names}
    with pytest.raises(JudgeError, match="20 of 20 judgements missing"):
        make_judge(concurrency=4).ask(prompts(*names))
    assert len(server.asked) <= 14  # three under way when the fourth fails, two tries each
    server.asked.clear()
    server.planned = {name: [ERROR_500] * 2 for name in names[:8:2]}
    with pytest.raises(JudgeError, match="4 of 8 judgements missing, 4 of them"):
        make_judge(concurrency=1).ask(prompts(*names[:8]))


def test_a_refused_key_is_named_by_its_variable_and_never_shown(
    server: Server,
    make_judge: MakeJudge,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    refusal = json.dumps({"error": {"message": f"no such key: {KEY}"}}).encode()
    names = [str(n) for n in range(9)]
    server.planned = {name: [Reply(refusal, 401)] for name in names}
    with caplog.at_level("DEBUG"), pytest.raises(JudgeError) as failure:
        make_judge(api_key_env="JUDGE_KEY", concurrency=2).ask(prompts(*names))
    assert "no such key: [the key]. Correct the key in the environment variable JUDGE_KEY" in str(
        failure.value
    )
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert len(server.asked) <= 2  # no further one once the key is refused
    server.planned = {"0": [Reply(completion("[[7]]"))]}
    make_judge(api_key_env="JUDGE_KEY").ask(prompts("0"))
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert KEY not in str(failure.value) + caplog.text + kept


def test_no_key_is_sent_unless_one_is_named(
    server: Server, make_judge: MakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    make_judge().ask(prompts("a"))
    assert server.keys == ["Bearer none"]


@pytest.mark.parametrize(
    "choice", [{"finish_reason": "length"}, {"finish_reason": "content_filter"}]
)
def test_a_cut_or_withheld_answer_is_empty_and_kept(
    server: Server, make_judge: MakeJudge, choice: dict[str, str]
) -> None:
    server.planned["a"] = [Reply(completion(None, **choice))]
    assert make_judge().ask(prompts("a")) == [""]
    assert make_judge().ask(prompts("a")) == [""]
    assert server.asked == ["a"]


def test_a_refusal_is_an_answer(server: Server, make_judge: MakeJudge) -> None:
    server.planned["a"] = [Reply(completion(None, message={"refusal": "I will not judge this."}))]
    assert make_judge().ask(prompts("a")) == ["I will not judge this."]


def test_an_unwritable_folder_is_named(make_judge: MakeJudge, tmp_path: Path) -> None:
    (tmp_path / "judgements").write_text("a file")
    with pytest.raises(RequestError, match=r"cannot be stored under .*judgements.*Set cache"):
        make_judge().check()


def test_a_full_disk_is_reported(make_judge: MakeJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(JudgeError, match=r"No space left on device\. Set cache"):
        make_judge().ask(prompts("a"))


def test_check_passes_if_the_judge_answers(server: Server, make_judge: MakeJudge) -> None:
    make_judge().check()
    assert len(server.asked) == 1
    assert server.bodies[0]["max_tokens"] == 2048


def test_check_refuses_an_unknown_model(server: Server, make_judge: MakeJudge) -> None:
    with pytest.raises(RequestError, match=r"model: .* has no 'gpt-5'; it lists judge, other"):
        make_judge(model="gpt-5").check()
    assert server.asked == []


@pytest.mark.parametrize(
    "models",
    [Reply(b"not found", 404), Reply(b"", 501), Reply(b"<html>"), Reply(b'{"data": []}')],
)
def test_check_works_without_a_list_of_models(
    server: Server, make_judge: MakeJudge, models: Reply
) -> None:
    server.models = models
    make_judge(model="anything").check()


def refused(body: bytes, status: int) -> dict[str, list[Reply]]:
    return {"Reply with the word yes.": [Reply(body, status)]}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"error": {"message": "no such model"}}', 404, "no such model. Correct base_url"),
        (b'{"error": {"message": "use max_completion_tokens"}}', 400, r"max_tokens \(null"),
        (b"", 401, "Name the environment variable that holds its key: api_key_env"),
        (b'{"error": {"message": "pay", "code": "insufficient_quota"}}', 429, "pay. Lower"),
        (b"loading", 503, "503. Check the server"),
        (b"<html>", 200, "the reply is not JSON"),
    ],
)
def test_check_reports_errors_of_the_trial(
    server: Server, make_judge: MakeJudge, body: bytes, status: int, message: str
) -> None:
    server.planned = refused(body, status)
    with pytest.raises(RequestError, match=message):
        make_judge().check()


def test_check_accepts_a_busy_and_a_slow_judge(server: Server, make_judge: MakeJudge) -> None:
    server.planned = refused(b'{"error": {"message": "busy"}}', 429)
    make_judge().check()
    server.planned = {"Reply with the word yes.": [Reply(wait_s=60)]}
    make_judge().check(timeout_s=0.2)


def test_check_refuses_a_stalled_server(server: Server, make_judge: MakeJudge) -> None:
    server.models = Reply(wait_s=60)
    with pytest.raises(RequestError, match=r"no answer within 0\.2 s"):
        make_judge().check(timeout_s=0.2)


def test_check_refuses_a_missing_endpoint(make_judge: MakeJudge) -> None:
    with pytest.raises(RequestError, match=r"127\.0\.0\.1:9/v1: .* Check that it runs"):
        make_judge(base_url="http://127.0.0.1:9/v1").check()


def test_check_refuses_a_missing_key(
    server: Server, make_judge: MakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(RequestError, match="variable JUDGE_KEY is not set; export"):
        make_judge(api_key_env="JUDGE_KEY").check()
    monkeypatch.setenv("JUDGE_KEY", KEY + "\n")
    with pytest.raises(RequestError, match="JUDGE_KEY holds white space") as failure:
        make_judge(api_key_env="JUDGE_KEY").check()
    assert KEY not in str(failure.value)
    assert server.keys == []


def test_check_refuses_a_missing_package(
    make_judge: MakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(RequestError, match=r"pip install 'sft_lab\[judge\]'"):
        make_judge().check()


def test_a_judge_can_be_asked_inside_an_event_loop(make_judge: MakeJudge) -> None:
    async def notebook_cell() -> list[str]:
        return make_judge().ask(prompts("a"))

    assert asyncio.run(notebook_cell()) == ["a: [[7]]"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "model must name .* got ''"),
        ({"base_url": "localhost:8000/v1"}, "got 'localhost:8000/v1'"),
        ({"base_url": "http://h:x/v1"}, "got 'http://h:x/v1'"),
        ({"base_url": "http://h/v1/chat/completions"}, "must end before /chat/completions"),
        ({"base_url": f"http://me:{KEY}@h/v1"}, "give the key by api_key_env"),
        ({"api_key_env": KEY}, "must be the name of an environment variable"),
        ({"extra_body": {"stream": True}}, "the judge sets 'stream' itself"),
    ],
)
def test_arguments_out_of_range_are_refused(
    make_judge: MakeJudge, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message) as failure:
        make_judge(**change)
    assert KEY not in str(failure.value)
