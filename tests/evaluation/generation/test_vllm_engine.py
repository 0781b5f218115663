"""The engine vllm against a stand-in on loopback; whole runs with it are in test_vllm_run."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from judge_server import AT_ONCE, DROP, ERROR_500, Reply
from vllm_server import COMPLETIONS, LOAD, SLEEP, UNLOAD, WAKE, VllmStandIn

from sft_lab.errors import RequestError
from sft_lab.evaluation.generation import Decoding, NativeEngine, VllmEngine, VllmServer
from sft_lab.evaluation.generation.vllm import server as client
from sft_lab.evaluation.generation.vllm.server import VllmError
from sft_lab.model.adapter_config import Lora, add_adapters
from sft_lab.model.qlora import load_base

PROMPTS = [[7, 30, 41], [9], [12, 80, 100, 33, 60], [100, 101]]
MakeEngine = Callable[..., VllmEngine]


@pytest.fixture
def make_engine(vllm: VllmStandIn, monkeypatch: pytest.MonkeyPatch) -> MakeEngine:
    monkeypatch.setattr(client, "_LONGEST_PAUSE_S", 0.01)

    def make(concurrency: int = 3, **changes: Any) -> VllmEngine:
        given = {"base_url": vllm.url, "timeout_s": 20.0, "max_tries": 3}
        return VllmEngine(VllmServer(**given | changes), concurrency)

    return make


@pytest.fixture
def adapted(tiny_base: Path) -> Any:
    """The tiny base with adapters that change its answers."""
    model = add_adapters(load_base(str(tiny_base), "fp32", torch.float32), Lora(r=4), seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    return model


def letters(token_ids: Any) -> str:
    return "".join(chr(0x4E00 + token_id) for token_id in token_ids)


def complete(engine: Any, model: Any, **changes: Any) -> list[str]:
    settings = {"max_new_tokens": 8, "eos_token_ids": {4}, "pad_token_id": 0, "decode": letters}
    return engine.complete(model, PROMPTS, **settings | changes)


def answered(token_ids: list[int], **others: Any) -> Reply:
    choice = {"finish_reason": "length", "token_ids": token_ids, **others}
    return Reply(json.dumps({"choices": [choice]}).encode())


def test_answers_are_those_of_the_native_engine(make_engine: MakeEngine, adapted: Any) -> None:
    native = NativeEngine(batch_size=2)
    expected = complete(native, adapted)
    with adapted.disable_adapter():
        assert complete(native, adapted) != expected
    engine = make_engine()
    with engine.holding(adapted, "a") as name:
        assert complete(engine, name) == expected
        # An end token anywhere but at the end.
        ends = {ord(expected[0][3]) - 0x4E00}
        stopped = complete(engine, name, eos_token_ids=ends)
        assert stopped == complete(native, adapted, eos_token_ids=ends)
        assert stopped[0] == expected[0][: expected[0].index(expected[0][3])]
        # The stand-in stops by its own text; what is cut off is decided here.
        cut = {
            "decoding": Decoding(stop_strings=[" "]),
            "decode": lambda ids: letters(ids) + " over",
        }
        assert complete(engine, name, **cut) == expected


def test_stop_strings_end_answers_on_the_server(
    vllm: VllmStandIn, make_engine: MakeEngine, adapted: Any
) -> None:
    def decode(token_ids: Any) -> str:
        return str(vllm.tokenizer.decode(token_ids, skip_special_tokens=True))

    native = NativeEngine(batch_size=2)
    texts = complete(native, adapted, decode=decode)
    stops = sorted({text[2:4] for text in texts if len(text) > 5})
    settings = {"decode": decode, "decoding": Decoding(stop_strings=stops)}
    expected = complete(native, adapted, **settings)
    assert expected != texts
    engine = make_engine()
    with engine.holding(adapted, "a") as name:
        assert complete(engine, name, **settings) == expected
    assert vllm.bodies[COMPLETIONS][-1]["stop"] == stops


def test_requests_leave_nothing_to_the_server(
    vllm: VllmStandIn, make_engine: MakeEngine, adapted: Any
) -> None:
    engine = make_engine(concurrency=1)
    with engine.holding(adapted, "a") as name:
        complete(engine, name, eos_token_ids={9, 4})
    assert vllm.bodies[COMPLETIONS][0] == {
        "model": "a",
        "prompt": PROMPTS[0],
        "max_tokens": 8,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": [],
        "stop_token_ids": [4, 9],
        "ignore_eos": True,
        "return_token_ids": True,
    }


def test_samples_have_seeds_of_their_own(
    vllm: VllmStandIn, make_engine: MakeEngine, adapted: Any
) -> None:
    engine = make_engine()
    decoding = Decoding(temperature=1.0, top_p=0.9, num_samples=3)
    with engine.holding(adapted, "a") as name:
        texts = complete(engine, name, decoding=decoding)
        assert complete(engine, name, decoding=decoding) == texts
        assert complete(engine, name, decoding=decoding, samples=[2] * 4) == texts[2::3]
        other = Decoding(temperature=1.0, top_p=0.9, num_samples=3, seed=1)
        assert complete(engine, name, decoding=other) != texts
    assert len(texts) == 12
    assert len(set(texts[:3])) == 3
    assert len({body["seed"] for body in vllm.bodies[COMPLETIONS]}) == 24
    assert all(body["top_p"] == 0.9 for body in vllm.bodies[COMPLETIONS])


def test_adapters_are_served_for_the_time_of_an_evaluation(
    vllm: VllmStandIn, make_engine: MakeEngine, adapted: Any, tmp_path: Path
) -> None:
    engine = make_engine(adapter_dir=tmp_path / "adapters")
    (tmp_path / "adapters").mkdir()
    with engine.holding(adapted, "a"):
        (folder,) = (tmp_path / "adapters").iterdir()
        assert list(vllm.adapters) == ["a"]
        assert vllm.adapters["a"][0] == folder
        assert folder.stat().st_mode & 0o777 == 0o700
    assert vllm.adapters == {}
    assert list((tmp_path / "adapters").iterdir()) == []
    with pytest.raises(KeyError), engine.holding(adapted, "b"):
        raise KeyError
    assert vllm.adapters == {}


@pytest.mark.parametrize(
    ("mode", "folder_mode", "file_mode"), [(0o750, 0o750, 0o640), (0o755, 0o700, None)]
)
def test_adapters_are_open_to_a_group_that_was_chosen_and_to_nobody_else(
    make_engine: MakeEngine,
    adapted: Any,
    tmp_path: Path,
    mode: int,
    folder_mode: int,
    file_mode: int | None,
) -> None:
    tmp_path.chmod(mode)
    with make_engine(adapter_dir=tmp_path).holding(adapted, "a"):
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o777 == folder_mode
        if file_mode is not None:
            assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {file_mode}


def test_as_many_requests_are_open_as_answers_may_be_generated(
    vllm: VllmStandIn, make_engine: MakeEngine, adapted: Any
) -> None:
    engine = make_engine(concurrency=2)
    vllm.planned[COMPLETIONS] = [Reply(b"{}", 503, AT_ONCE, wait_s=0.1) for _ in range(4)]
    with engine.holding(adapted, "a") as name:
        complete(engine, name)
    assert vllm.most_open == 2


# What goes wrong.


@pytest.mark.parametrize(
    "failure",
    [
        ERROR_500,
        Reply(b"slow down", 429, {"Retry-After": "0.01"}),
        DROP,
        Reply(b"<html>a gateway</html>"),
        Reply(b'{"choices": []}'),
        Reply(b'{"choices": [{"finish_reason": "abort", "token_ids": [5]}]}'),
        Reply(b'{"choices": [{"finish_reason": "stop", "token_ids": ["x"]}]}'),
        Reply(b"{}", wait_s=2),
    ],
)
def test_a_failure_that_passes_changes_no_answer(
    vllm: VllmStandIn, make_engine: MakeEngine, adapted: Any, failure: Reply
) -> None:
    engine = make_engine(timeout_s=1.0)
    with engine.holding(adapted, "a") as name:
        expected = complete(engine, name)
        vllm.planned[COMPLETIONS] = [failure]
        assert complete(engine, name) == expected


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (ERROR_500, "HTTP 500, out of memory"),
        (Reply(b"nonsense"), "the reply is not a completion, got 'nonsense'"),
        (Reply(b"{}", wait_s=60), "no answer within 0.3 s"),
        (Reply(b'{"message": "too long"}', 400), "HTTP 400, too long"),
        (Reply(b"", 307, {"Location": "http://127.0.0.1:1/"}), "HTTP 307"),
        (Reply(b"{}", headers={"Content-Encoding": "gzip"}), "decompressing"),
        (Reply(b" " * (16 * 2**20 + 1)), "longer than 16 MiB"),
        (answered([5] * 9), "the answer has 9 tokens, and 8 were asked for"),
        (answered([-1]), "has no token_ids"),
        (answered([2**40]), "has no token_ids"),
        (answered([5], prompt_token_ids=[5]), "answers another prompt"),
    ],
)
def test_a_failure_that_stays_ends_the_evaluation(
    vllm: VllmStandIn, make_engine: MakeEngine, adapted: Any, failure: Reply, said: str
) -> None:
    engine = make_engine(timeout_s=0.3 if failure.wait_s else 20.0)
    with engine.holding(adapted, "a") as name:
        vllm.planned[COMPLETIONS] = [failure] * 20
        with pytest.raises(VllmError, match=said):
            complete(engine, name)
    assert vllm.adapters == {}


def test_a_load_that_came_through_without_its_reply_is_no_failure(
    vllm: VllmStandIn, make_engine: MakeEngine, adapted: Any
) -> None:
    load = vllm.load

    def slow(body: Any) -> str:
        vllm.load = load
        load(body)
        time.sleep(1)
        return "late"

    vllm.load = slow  # type: ignore[method-assign]
    engine = make_engine(timeout_s=0.5)
    with engine.holding(adapted, "a") as name:
        assert len(complete(engine, name)) == 4
    assert len(vllm.bodies[LOAD]) >= 2


def test_adapters_that_do_not_fit_are_refused_with_the_fix(
    vllm: VllmStandIn, make_engine: MakeEngine, adapted: Any
) -> None:
    vllm.max_lora_rank = 2
    with (
        pytest.raises(RequestError, match=r"rank 4 is greater.*--max-lora-rank of 4 or more"),
        make_engine().holding(adapted, "a"),
    ):
        pass
    assert len(vllm.bodies[LOAD]) == 1
    vllm.max_lora_rank = 16
    vllm.planned[LOAD] = [ERROR_500, Reply(b"{}", 503, AT_ONCE)]
    with pytest.raises(RequestError, match=r"out of memory"), make_engine().holding(adapted, "a"):
        pass
    with make_engine().holding(adapted, "a"):  # busy, and then not
        pass


def test_an_adapter_that_stays_behind_is_told_and_nothing_else(
    vllm: VllmStandIn, make_engine: MakeEngine, adapted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    vllm.planned[UNLOAD] = [ERROR_500]
    with make_engine().holding(adapted, "a"):
        pass
    assert "still holds the adapter a: HTTP 500" in caplog.text


def test_ctrl_c_does_not_wait_for_the_server(
    vllm: VllmStandIn, make_engine: MakeEngine, adapted: Any
) -> None:
    engine = make_engine(timeout_s=60.0)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    with engine.holding(adapted, "a") as name:
        vllm.planned[COMPLETIONS] = [Reply(b"{}", wait_s=60)] * 4
        timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
        started = time.monotonic()
        timer.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                complete(engine, name)
        finally:
            signal.signal(signal.SIGINT, handler)
        assert time.monotonic() - started < 5


# What is found out before anything is trained.


def check(engine: VllmEngine, base: Any, **changes: Any) -> None:
    engine.check(str(base), **{"rank": 4, "num_tokens": 100} | changes)


def test_a_server_that_fits_is_taken(
    vllm: VllmStandIn, make_engine: MakeEngine, tiny_base: Path, tmp_path: Path
) -> None:
    engine = make_engine(adapter_dir=tmp_path / "new")
    check(engine, tiny_base)
    assert engine.served_base == str(tiny_base)
    assert (tmp_path / "new").is_dir()
    assert vllm.adapters == {}
    (tmp_path / "link").symlink_to(tiny_base)
    check(engine, tmp_path / "link")
    vllm.served_name = "tiny"
    check(make_engine(base_url=f"{vllm.url}/v1/"), tiny_base)  # by its root
    check(make_engine(model="tiny"), "somebody/tiny")


def test_a_server_that_is_not_there_is_said_with_the_command(tiny_base: Path) -> None:
    engine = VllmEngine(VllmServer(base_url="http://127.0.0.1:9"), 1)
    with pytest.raises(RequestError) as said:
        check(engine, tiny_base, rank=24)
    command = f"vllm serve {tiny_base} --enable-lora --max-lora-rank 32 --generation-config vllm"
    assert f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True {command}" in str(said.value)
    assert "http://127.0.0.1:9 cannot be asked" in str(said.value)


def test_a_server_that_cannot_serve_this_run_is_refused(
    vllm: VllmStandIn, make_engine: MakeEngine, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match=r"serves .*base, and model.base is other/model"):
        check(make_engine(), "other/model")
    with pytest.raises(RequestError, match=r"and evaluation.vllm.model is other"):
        check(make_engine(model="other"), tiny_base)
    with pytest.raises(RequestError, match=r"takes 256 tokens.*--max-model-len 300"):
        check(make_engine(), tiny_base, num_tokens=300)
    vllm.returns_token_ids = False
    with pytest.raises(RequestError, match=r"no token_ids, which vLLM returns from 0.10.2 on"):
        check(make_engine(), tiny_base)
    vllm.returns_token_ids, vllm.runtime_lora = True, False
    with pytest.raises(RequestError, match=r"not started for adapters .*UPDATING=True vllm serve"):
        check(make_engine(), tiny_base)
    vllm.runtime_lora, vllm.key = True, "secret"
    with pytest.raises(RequestError, match=r"HTTP 401.*api_key_env must name the variable"):
        check(make_engine(), tiny_base)
    monkeypatch.setenv("VLLM_KEY", "secret")
    check(make_engine(api_key_env="VLLM_KEY"), tiny_base)
    monkeypatch.delenv("VLLM_KEY")
    with pytest.raises(RequestError, match=r"evaluation.vllm.api_key_env: .* VLLM_KEY is not set"):
        check(make_engine(api_key_env="VLLM_KEY"), tiny_base)


def test_a_server_sleeps_between_evaluations(
    vllm: VllmStandIn, tiny_base: Path, make_engine: MakeEngine, adapted: Any
) -> None:
    vllm.dev_mode = vllm.sleeping = True  # as the last run left it
    engine = make_engine(sleep=True)
    check(engine, tiny_base)
    assert vllm.sleeping
    with engine.holding(adapted, "a") as name:
        assert not vllm.sleeping
        assert complete(engine, name) == complete(NativeEngine(batch_size=2), adapted)
    assert vllm.sleeping
    with pytest.raises(ZeroDivisionError), engine.holding(adapted, "b"):
        raise ZeroDivisionError
    assert vllm.sleeping
    assert vllm.adapters == {}
    assert len(vllm.bodies[WAKE]) == len(vllm.bodies[SLEEP]) == 3


def test_a_server_is_left_awake_unless_asked_to_sleep(
    vllm: VllmStandIn, tiny_base: Path, make_engine: MakeEngine, adapted: Any
) -> None:
    vllm.dev_mode = True
    engine = make_engine()
    check(engine, tiny_base)
    with engine.holding(adapted, "a") as name:
        complete(engine, name)
    assert not {WAKE, SLEEP} & vllm.bodies.keys()


def test_a_server_without_sleep_is_refused_with_the_fix(
    tiny_base: Path, make_engine: MakeEngine
) -> None:
    with pytest.raises(RequestError, match=r"VLLM_SERVER_DEV_MODE=1 .* --enable-sleep-mode, or"):
        check(make_engine(sleep=True), tiny_base)


def test_a_server_that_does_not_fall_asleep_is_reported_and_nothing_else(
    vllm: VllmStandIn, make_engine: MakeEngine, adapted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    vllm.dev_mode = True
    vllm.planned[SLEEP] = [ERROR_500]
    with make_engine(sleep=True).holding(adapted, "a"):
        pass
    assert "does not sleep, and keeps its device's memory: HTTP 500" in caplog.text


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("base_url", "localhost:8000", r"vllm.base_url must be http\(s\)"),
        ("api_key_env", "sk-1", "api_key_env must be the name"),
    ],
)
def test_settings_out_of_range_are_refused(argument: str, value: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        VllmServer(**{argument: value})
