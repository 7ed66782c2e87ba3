"""`seqmix generate`: text from a trained model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from seqmix.cli.options import Imports

if TYPE_CHECKING:
    from seqmix.generation import Engine, Generated


def generate_command(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The folder of a finished run.")],
    prompt: Annotated[str | None, typer.Option(help="The text to go on from; - reads it from stdin.")] = None,
    prompt_file: Annotated[str | None, typer.Option(help="A UTF-8 text file to go on from.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw among as many of the likeliest tokens.")] = None,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens with this share together.")] = 1.0,
    engine: Annotated[
        str | None, typer.Option(help="torch, onnx, native, or cuda_graph on a GPU: the same text. [the fastest here]")
    ] = None,
    weights: Annotated[str, typer.Option(help="f32, bf16 or int8: smaller is faster and loses a little.")] = "f32",
    rings: Annotated[str, typer.Option(help="f32, or bf16: half the memory for the past of convolutions.")] = "f32",
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default torch's choice.")] = None,
    device: Annotated[str, typer.Option(help="Where torch runs: cpu, cuda, cuda:1.")] = "cpu",
    imports: Imports = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print speed and state size to stderr at the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the text.")] = False,
) -> None:
    """Continues a text, at a cost per token that does not grow with it for models of constant state.

    Without a prompt a document is begun. Only what is generated is printed; it ends at the model's end token.

    Example: seqmix generate runs/first --prompt "def main(" --max-new-tokens 200 --temperature 0.8
    """
    from pathlib import Path

    from seqmix.cli.output import print_json
    from seqmix.errors import InputError, unknown_name
    from seqmix.generation import (
        ENGINES,
        GPU_ENGINES,
        RING_TYPES,
        WEIGHT_TYPES,
        Sampler,
        SamplingConfig,
        create_engine,
        fastest_engine,
        generate,
        text_stream,
    )

    if engine is not None and engine not in (*ENGINES, *GPU_ENGINES):
        raise unknown_name("engine", engine, (*ENGINES, *GPU_ENGINES))
    if rings not in RING_TYPES:
        raise unknown_name("ring type", rings, RING_TYPES)
    if rings != "f32" and engine is None:
        engine = "native"
    if device != "cpu" and engine in ("onnx", "native"):
        raise InputError(f"the engine {engine} runs on the CPU and device is {device!r}: choose the engine torch")
    if weights not in WEIGHT_TYPES:
        raise unknown_name("weight type", weights, WEIGHT_TYPES)
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}: it must be at least 1")
    if max_new_tokens < 1:
        raise InputError(f"max-new-tokens is {max_new_tokens}: it must be at least 1")
    if prompt is not None and prompt_file is not None:
        raise InputError(f"both a prompt and the prompt file {prompt_file!r} were given: leave one of the two out")
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    text = _read_prompt(prompt, prompt_file)

    import torch

    from seqmix.data.tokenizers import TextEncoder, load_tokenizer
    from seqmix.mixers.user_code import import_all
    from seqmix.models.loading import load_model
    from seqmix.training.run import choose_device

    if threads is not None:
        torch.set_num_threads(threads)
    import_all(imports or [])
    model = load_model(folder, device=choose_device(device), dtype=torch.float32)
    tokenizer = load_tokenizer(Path(folder))
    stream = text_stream(tokenizer)
    ends = model.config.eos_token_id
    end_tokens = {ends} if isinstance(ends, int) else set(ends or ())
    tokens = TextEncoder(tokenizer).encode([text])[0].tolist()
    if engine is None:
        runner = fastest_engine(model, weights=weights, threads=threads)
    else:
        runner = create_engine(engine, model, weights=weights, threads=threads, rings=rings)
    # In training every document begins with the end token of the one before it.
    start = tokenizer.eos_token_id
    pieces: list[str] = []

    def show(token: int) -> None:
        pieces.append(stream.add(token))
        if not as_json:
            sys.stdout.write(pieces[-1])
            sys.stdout.flush()

    result = generate(runner, [start, *tokens], max_new_tokens, Sampler(config), end_tokens=end_tokens, show=show)
    pieces.append(stream.finish())
    if as_json:
        print_json({"text": "".join(pieces), "prompt": text, **_document(result, runner), "seed": seed})
    else:
        print(pieces[-1], flush=True)
    if stats:
        _print_stats(result, runner)


def _read_prompt(prompt: str | None, prompt_file: str | None) -> str:
    """The text to go on from."""
    from pathlib import Path

    from seqmix.errors import InputError

    if prompt != "-" and prompt_file is None:
        return prompt or ""
    name = "stdin" if prompt_file is None else prompt_file
    try:
        content = sys.stdin.buffer.read() if prompt_file is None else Path(prompt_file).expanduser().read_bytes()
        return content.decode()
    except OSError as error:
        raise InputError(f"the prompt file {name!r} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt in {name} is not UTF-8 text at byte {error.start}: convert it") from error


def _document(result: Generated, engine: Engine) -> dict:
    """What was done and how fast, as a JSON value."""
    # The last token that is drawn is not read, so there is one step less than tokens.
    steps = max(0, len(result.tokens) - (0 if result.stopped else 1))
    return {
        "tokens": result.tokens,
        "stopped": result.stopped,
        "prompt_tokens": result.prompt_tokens,
        "engine": engine.name,
        "weights": engine.weights,
        "prefill_seconds": result.prefill_seconds,
        "decode_seconds": result.decode_seconds,
        "prefill_tokens_per_second": result.prompt_tokens / result.prefill_seconds,
        "decode_tokens_per_second": steps / result.decode_seconds if steps else None,
        "state_bytes": engine.state_bytes,
    }


def _print_stats(result: Generated, engine: Engine) -> None:
    """The numbers of `_document` in words, on stderr."""
    from seqmix.cli.output import human_bytes, human_seconds

    document = _document(result, engine)
    rate = document["decode_tokens_per_second"]
    speed = "" if rate is None else f", {rate:,.0f} tokens/s"
    print(
        f"{engine.name}, {engine.weights}: read {result.prompt_tokens} tokens in "
        f"{human_seconds(result.prefill_seconds)}, generated {len(result.tokens)} in "
        f"{human_seconds(result.decode_seconds)}{speed}; state {human_bytes(engine.state_bytes)}",
        file=sys.stderr,
    )
