"""Stand in for vLLM's server on loopback: its LoRA endpoints, implemented with transformers.

Tokens, statuses and messages follow the source of vLLM's OpenAI-compatible server (0.10.2 and
later); the stand-in can also fail, stall and answer nonsense.
"""

import copy
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from judge_server import Reply

COMPLETIONS, LOAD, UNLOAD = (
    f"/v1/{name}" for name in ("completions", "load_lora_adapter", "unload_lora_adapter")
)
SLEEP, WAKE = "/sleep?level=1&mode=wait", "/wake_up"


class RefusedError(Exception):
    """An error response in vLLM's format."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class VllmStandIn(ThreadingHTTPServer):
    """Serves a base and the adapters it is asked to load; records all requests."""

    daemon_threads = True

    def __init__(self, base: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        super().__init__(("127.0.0.1", 0), Handler)
        self.base = base
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.served_name = str(base)
        self.runtime_lora, self.returns_token_ids = True, True
        self.dev_mode, self.sleeping = False, False
        self.max_lora_rank, self.max_model_len = 16, 256
        self.key: str | None = None
        self.adapters: dict[str, tuple[Path, Any]] = {}
        self.loaded: list[str] = []  # names in order, including unloaded ones
        self.ranks: list[int] = []
        self.planned: dict[str, list[Reply | None]] = {}  # None: the regular answer
        self.bodies: dict[str, list[dict[str, Any]]] = {}
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def models(self) -> dict[str, Any]:
        card = {"object": "model", "owned_by": "vllm"}
        base = {"id": self.served_name, "root": str(self.base), "parent": None}
        adapters = [
            {"id": name, "root": str(path), "parent": self.served_name, **card}
            for name, (path, _) in self.adapters.items()
        ]
        length = {"max_model_len": self.max_model_len}
        return {"object": "list", "data": [{**base, **card, **length}, *adapters]}

    def load(self, body: Mapping[str, Any]) -> str:
        from peft import PeftModel

        name, path = body["lora_name"], body["lora_path"]
        if not name or not path:
            raise RefusedError(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.adapters:
            raise RefusedError(400, f"The lora adapter '{name}' has already been loaded.")
        settings = Path(path) / "adapter_config.json"
        if not settings.is_file():
            raise RefusedError(404, f"Loading lora {name} failed: No adapter found for {path}")
        rank = json.loads(settings.read_text())["r"]
        if rank > self.max_lora_rank:
            message = f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}."
            raise RefusedError(500, f"Call to add_adapters method failed: {message}")
        adapted = PeftModel.from_pretrained(copy.deepcopy(self.model), path).eval()
        self.adapters[name] = (Path(path), adapted)
        self.loaded.append(name)
        self.ranks.append(rank)
        return f"Success: LoRA adapter '{name}' added successfully."

    def sleep(self, asleep: bool) -> dict[str, Any]:
        self.sleeping = asleep
        return {"status": "sleeping" if asleep else "awake"}

    def unload(self, body: Mapping[str, Any]) -> str:
        name = body["lora_name"]
        if name not in self.adapters:
            raise RefusedError(404, f"The lora adapter '{name}' cannot be found.")
        del self.adapters[name]
        return f"Success: LoRA adapter '{name}' removed successfully."

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        name, prompt = body["model"], body["prompt"]
        if self.sleeping:  # the real one does not answer at all
            raise RefusedError(400, "The engine sleeps.")
        if name != self.served_name and name not in self.adapters:
            raise RefusedError(404, f"The model `{name}` does not exist.")
        if len(prompt) + body["max_tokens"] > self.max_model_len:
            raise RefusedError(
                400, f"This model's maximum context length is {self.max_model_len} tokens."
            )
        model = self.adapters[name][1] if name in self.adapters else self.model
        token_ids, reason = self._generate(model, prompt, body)
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": reason}
        if body.get("return_token_ids") and self.returns_token_ids:
            choice |= {"token_ids": token_ids, "prompt_token_ids": prompt}
        return {"object": "text_completion", "model": name, "choices": [choice]}

    def _generate(
        self, model: Any, prompt: Sequence[int], body: Mapping[str, Any]
    ) -> tuple[list[int], str]:
        """Return the token ids, including the token that ended them, and the finish reason."""
        ends = set(body.get("stop_token_ids") or ())
        if not body.get("ignore_eos"):
            ends.add(self.tokenizer.eos_token_id)
        draw: dict[str, Any] = {"do_sample": body["temperature"] > 0}
        if draw["do_sample"]:
            draw |= {"temperature": body["temperature"], "top_p": body["top_p"], "top_k": 0}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(body.get("seed") or 0)
            output = model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=body["max_tokens"],
                eos_token_id=sorted(ends) or None,
                pad_token_id=self.tokenizer.pad_token_id,
                repetition_penalty=body["repetition_penalty"],
                **draw,
            )
        token_ids: list[int] = output[0, len(prompt) :].tolist()
        for count in range(1, len(token_ids) + 1):
            text = self.tokenizer.decode(token_ids[:count], skip_special_tokens=True)
            if any(stop in text for stop in body["stop"]):
                return token_ids[:count], "stop"
        return token_ids, "stop" if token_ids[-1] in ends else "length"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: VllmStandIn

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer({})

    def do_POST(self) -> None:
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, body: dict[str, Any]) -> None:
        with self.server.lock:
            self.server.bodies.setdefault(self.path, []).append(body)
            planned = self.server.planned.get(self.path)
            reply = planned.pop(0) if planned else None
            self.server.open += 1
            self.server.most_open = max(self.server.most_open, self.server.open)
        try:
            self.send(reply or self.reply_to(body))
        finally:
            with self.server.lock:
                self.server.open -= 1

    def reply_to(self, body: Mapping[str, Any]) -> Reply:
        server = self.server
        if server.key is not None and self.headers["Authorization"] != f"Bearer {server.key}":
            return Reply(b'{"error": "Unauthorized"}', 401)
        routes = {"/v1/models": lambda _: server.models(), COMPLETIONS: server.complete}
        if server.runtime_lora:
            routes |= {LOAD: server.load, UNLOAD: server.unload}
        if server.dev_mode:
            routes |= {SLEEP: lambda _: server.sleep(True), WAKE: lambda _: server.sleep(False)}
        if self.path not in routes:
            return Reply(b'{"detail": "Not Found"}', 404)
        try:
            with server.lock:
                found: Any = routes[self.path](body)
        except RefusedError as fault:
            error = {"message": str(fault), "type": "BadRequestError", "code": fault.status}
            return Reply(json.dumps({"error": error}).encode(), fault.status)
        return Reply(found.encode() if isinstance(found, str) else json.dumps(found).encode())

    def send(self, reply: Reply) -> None:
        self.server.closing.wait(reply.wait_s)
        if reply.drop:
            self.close_connection = True
            return
        self.send_response(reply.status)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client has given up
            self.close_connection = True


@pytest.fixture
def vllm(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmStandIn]:
    """A stand-in for vLLM that serves the tiny base."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with VllmStandIn(tiny_base) as server:
        threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01)).start()
        yield server
        server.closing.set()
        server.shutdown()
