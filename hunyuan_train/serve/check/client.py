"""Asks an OpenAI-compatible server, whole and streamed, and keeps every token that it shows.

What servers add to the interface is taken where it comes: the ids of prompt and answer (vLLM:
`return_token_ids`; llama.cpp: `id`), thoughts under either name. Needs nothing but the standard
library.
"""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hunyuan_train.serve.errors import ServeError

REASONING_NAMES = ("reasoning", "reasoning_content")  # vLLM's, and SGLang's and llama.cpp's
UNREACHABLE = (urllib.error.URLError, http.client.HTTPException, OSError)
MAX_ERROR_CHARACTERS = 300
ID_MARK = "token_id:"  # what vLLM shows instead of a text where it is asked for ids


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownToken:
    """A generated token as the server shows it."""

    text: bytes
    logprob: float
    id: int | None = None  # None: the server shows only the text
    alternatives: tuple["ShownToken", ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerAnswer:
    """What a server made of one question."""

    reasoning: str | None
    content: str | None
    calls: tuple[tuple[str, str], ...]  # name and arguments
    finish_reason: str
    tokens: tuple[ShownToken, ...] = ()
    token_ids: tuple[int, ...] = ()
    prompt_ids: tuple[int, ...] = ()  # empty where the server does not show them
    num_prompt_tokens: int = 0
    num_answer_tokens: int = 0  # 0: the server does not say
    error: str = ""  # with which the server broke off; what else is here came before it


@dataclass(slots=True)
class _Parts:
    """An answer while its pieces come in."""

    reasoning: str | None = None
    content: str | None = None
    calls: dict[int, list[str]] = field(default_factory=dict)
    finish_reason: str = ""
    tokens: list[ShownToken] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_answer_tokens: int = 0
    error: str = ""

    def add_message(self, message: dict[str, Any]) -> None:
        thoughts = next((message[one] for one in REASONING_NAMES if message.get(one)), None)
        if thoughts is not None:
            self.reasoning = (self.reasoning or "") + thoughts
        if message.get("content"):
            self.content = (self.content or "") + message["content"]
        for position, call in enumerate(message.get("tool_calls") or ()):
            parts = self.calls.setdefault(call.get("index", position), ["", ""])
            function = call.get("function") or {}
            parts[0] += function.get("name") or ""
            parts[1] += function.get("arguments") or ""

    def add_choice(self, choice: dict[str, Any]) -> None:
        self.add_message(choice.get("message") or choice.get("delta") or {})
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        shown = (choice.get("logprobs") or {}).get("content") or ()
        self.tokens += [_read_token(one) for one in shown]
        self.token_ids += choice.get("token_ids") or ()

    def add(self, body: dict[str, Any]) -> None:
        self.error = _read_error(body.get("error")) or self.error
        self.prompt_ids = body.get("prompt_token_ids") or self.prompt_ids
        for choice in body.get("choices") or ():
            self.prompt_ids = choice.get("prompt_token_ids") or self.prompt_ids
            self.add_choice(choice)
        usage = body.get("usage") or {}
        self.num_prompt_tokens = usage.get("prompt_tokens") or self.num_prompt_tokens
        self.num_answer_tokens = usage.get("completion_tokens") or self.num_answer_tokens

    def finish(self) -> ServerAnswer:
        shown_ids = [one.id for one in self.tokens if one.id is not None]
        return ServerAnswer(
            reasoning=self.reasoning,
            content=self.content,
            calls=tuple((name, arguments) for name, arguments in self.calls.values()),
            finish_reason=self.finish_reason,
            tokens=tuple(self.tokens),
            token_ids=tuple(self.token_ids or shown_ids),
            prompt_ids=tuple(self.prompt_ids),
            num_prompt_tokens=self.num_prompt_tokens,
            num_answer_tokens=self.num_answer_tokens,
            error=self.error or ("" if self.finish_reason else "no finish_reason"),
        )


def _read_error(said: object) -> str:
    """What an event says of an error; "" where there is none."""
    if isinstance(said, dict):  # with an empty message where a bare exception was raised
        said = " ".join(str(said[key]) for key in ("type", "message") if said.get(key)) or "error"
    return str(said or "")[:MAX_ERROR_CHARACTERS].strip()


def _read_token(shown: dict[str, Any]) -> ShownToken:
    name = str(shown.get("token", ""))
    listed = shown.get("bytes")
    is_id = name.startswith(ID_MARK)
    return ShownToken(
        text=bytes(listed) if listed and not is_id else name.encode(),
        logprob=float(shown["logprob"]),
        id=int(name.removeprefix(ID_MARK)) if is_id else shown.get("id"),
        alternatives=tuple(_read_token(one) for one in shown.get("top_logprobs") or ()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """Where a server listens, and which of its models is asked."""

    url: str  # ends in /v1
    model: str
    timeout_seconds: float
    api_key: str = ""
    context_length: int = 0  # tokens; 0: the server does not say

    def ask(self, request: dict[str, Any], *, is_streamed: bool) -> ServerAnswer:
        """Put one question.

        Raises:
            ServeError: no answer, or one that is not the interface's. An answer that the server
                itself ends with an error is returned, as far as it came.
        """
        body = {"model": self.model, **request, "stream": is_streamed}
        if is_streamed:
            body["stream_options"] = {"include_usage": True}
        parts = _Parts()
        try:
            for piece in self._post("/chat/completions", body, is_streamed=is_streamed):
                parts.add(piece)
        except ServeError:
            raise
        except UNREACHABLE as error:
            raise ServeError(
                f"{self.url} gave no whole answer ({error!r}); read the server's log for the "
                "cause, or give it more time with --timeout SECONDS"
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServeError(
                f"{self.url} answers, but not as the OpenAI interface says ({error!r}); give the "
                "address of a server's /v1"
            ) from error
        return parts.finish()

    def _post(
        self, path: str, body: dict[str, Any], *, is_streamed: bool
    ) -> Iterator[dict[str, Any]]:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), headers=_headers(self.api_key)
        )
        with _open(request, self.timeout_seconds) as response:
            if not is_streamed:
                yield json.loads(response.read())
                return
            for line in response:
                event = line.decode("utf-8").strip()
                if event.startswith("data:") and event != "data: [DONE]":
                    yield json.loads(event.removeprefix("data:"))


def find_server(
    url: str, *, model: str, usual_name: str = "", timeout_seconds: float, api_key: str = ""
) -> Server:
    """Reach a server, and find the model to ask.

    Args:
        url: with or without /v1.
        model: its name there; "": the usual one, or the first.
        usual_name: which our own command serves it under.
        timeout_seconds: for each answer.
        api_key: sent with each request, where there is one.

    Raises:
        ServeError: nobody answers, or that model is not served.
    """
    address = url.rstrip("/")
    if "://" not in address:
        address = f"http://{address}"
    if not address.endswith("/v1"):
        address += "/v1"
    request = urllib.request.Request(f"{address}/models", headers=_headers(api_key))
    with _open(request, timeout_seconds) as response:
        try:
            listed = {one["id"]: one for one in json.loads(response.read())["data"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ServeError(
                f"{address}/models does not list models as the OpenAI interface does; give the "
                "address of an OpenAI-compatible server, such as http://localhost:8000"
            ) from error
    if not listed or (model and model not in listed):
        names = ", ".join(listed) or "no model"
        raise ServeError(f"{address} serves {names}; name one of them with --served_name")
    # An adapter's server lists its base model first.
    name = model or (usual_name if usual_name in listed else next(iter(listed)))
    return Server(
        url=address,
        model=name,
        timeout_seconds=timeout_seconds,
        api_key=api_key,
        context_length=_read_context(listed[name]),
    )


def _read_context(listed: dict[str, Any]) -> int:
    """How many tokens a server takes: vLLM and SGLang say it, and llama.cpp in its own words."""
    said = listed.get("max_model_len") or (listed.get("meta") or {}).get("n_ctx") or 0
    return int(said)


def _headers(api_key: str) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    return headers | ({"Authorization": f"Bearer {api_key}"} if api_key else {})


def _open(request: urllib.request.Request, timeout_seconds: float) -> http.client.HTTPResponse:
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(
            request, timeout=timeout_seconds
        )
    except urllib.error.HTTPError as error:
        said = error.read().decode("utf-8", "replace")[:MAX_ERROR_CHARACTERS]
        raise ServeError(f"{request.full_url} refuses with {error.code}: {said}") from error
    except UNREACHABLE as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise ServeError(
            f"{request.full_url} cannot be reached ({reason}); start the server first, for example "
            "with `hunyuan-train serve MODEL`, and give its address"
        ) from error
    except ValueError as error:
        raise ServeError(f"check is {request.full_url}, which is no address ({error})") from error
    return response
