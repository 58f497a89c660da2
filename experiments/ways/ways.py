"""Every way in which people run a model, on slung models, against copies with their layers really stacked.

    python experiments/ways/ways.py [WAY ...] [--out FOLDER] [--models llama …]

Prints a line for each way and model as it is done; with --out the table as results.csv.
"""

import argparse
import copy
import csv
import importlib.util
import pickle
import shutil
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository
from david import David, Recipe, export, load_model
from david.errors import DavidError
from david.sling.forward import CACHE
from david.sling.in_place import base_depth
from david.sling.locate import unwrapped
from david.sling.stacked_copy import stacked
from tests.tiny_models import tiny_named

MODELS = {  # what each stands for
    "demo": "SmolLM2-135M, a real model",
    "gemma3_text": "sliding windows in most layers",
    "jamba": "a hybrid: state spaces, attention, experts",
    "mixtral": "a mixture of experts",
}
TEXT = torch.arange(14)[None] * 5 + 3  # [1, T]: more than a tiny model's window, none of them special
PADDED = torch.cat([TEXT + 1, torch.cat([torch.zeros(1, 5, dtype=torch.long), TEXT[:, :9]], 1)])  # [2, T], padded left
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
ROUNDING = 1e-4  # of the spread of what is compared: what the order of a sum may change
HALF = 2e-2  # the same in half precision, and for code that a compiler fused


Change = Callable[[Any, Recipe], Any]  # a model, and what it is slung to → a model


def unchanged(model: Any, _recipe: Recipe) -> Any:
    return model


@dataclass(frozen=True)
class Way:
    """One way to run a model.

    `before` is done to a base before it is slung, `after` to the slung model; both are done to the stacked copy too, or
    `reference` in their place. `read` gives what is compared, `again` what it is compared with where that is another.
    """

    name: str
    read: Callable[[Any], Tensor]
    before: Change = unchanged
    after: Change = unchanged
    reference: Change | None = None
    again: Callable[[Any], Tensor] | None = None
    own: bool = False  # `before` makes weights, so that the stacked copy is one of the base after it
    plain: bool = False  # asked of recipes without scales only
    allowed: float = ROUNDING
    unit: Callable[[Tensor], Tensor] = torch.std  # of what is compared: in which differences are told
    needs: str = ""  # a package, or "g++"
    slow: bool = False


@dataclass
class Row:
    """A line of the table. `outcome`: exact, refused, base fails, skipped, or WRONG, which must not be."""

    way: str
    model: str
    outcome: str = "exact"
    difference: float = 0.0  # the largest of sling and view, of both recipes, in spreads; 0 is bit-equal
    reason: str = ""


def recipes(n_layers: int) -> dict[str, Recipe]:
    """What every way is tried on: a block again, a layer skipped and a stretch turned round; and visits damped."""
    half = n_layers // 2
    plain = [*range(half + 1), *range(half - 1, n_layers - 3), n_layers - 2, n_layers - 3, n_layers - 1]
    return {
        "plain": Recipe([layer for layer in plain if layer != 1]),
        "damped": Recipe([*range(n_layers), half, half - 1], [0.5, *[1] * (n_layers - 1), -0.3, 1]),
    }


# What is read


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TEXT, use_cache=False).logits


def greedy(model: Any, tokens: Tensor = TEXT, **options: Any) -> Tensor:
    """The logits of a greedy text read with a cache, after those of the text alone: [B, T + new, V], flat."""
    out = model.generate(input_ids=tokens, **GREEDY, output_logits=True, return_dict_in_generate=True, **options)
    return torch.cat([logits(model).flatten(), torch.stack(out.logits).flatten()])


def sequences(model: Any, **options: Any) -> Tensor:
    return model.generate(input_ids=TEXT, **(GREEDY | options)).double()


def padded(model: Any) -> Tensor:
    return greedy(model, PADDED, attention_mask=(PADDED != 0).long())


def two_turns(model: Any) -> Tensor:
    with torch.no_grad():
        first = model(input_ids=TEXT[:, :9], use_cache=True)
        second = model(input_ids=TEXT[:, 9:], use_cache=True, **{CACHE: first[CACHE]})
    return torch.cat([first.logits, second.logits], 1)


def sampled(model: Any) -> Tensor:
    torch.manual_seed(1)
    return sequences(model, do_sample=True, top_k=20)


def drafted(model: Any) -> Tensor:
    """A text that a view of the model's own base without one layer drafts: it must be the same as without a draft."""
    depth = base_depth(model)
    draft = David.view(model, [layer for layer in range(depth) if layer != depth // 2])
    return sequences(model, assistant_model=draft)


def streamed(model: Any) -> Tensor:
    told: list[int] = []

    class Streamer(transformers.generation.BaseStreamer):  # type: ignore[misc]
        def put(self, value: Tensor) -> None:
            told.extend(value.flatten().tolist())

        def end(self) -> None:
            told.append(-1)

    sequences(model, streamer=Streamer())
    return torch.tensor(told).double()


def hidden_states(model: Any) -> Tensor:
    with torch.no_grad():
        return torch.stack(model(input_ids=TEXT, use_cache=False, output_hidden_states=True).hidden_states)


def attentions(model: Any) -> Tensor:
    with torch.no_grad():
        told = model(input_ids=TEXT, use_cache=False, output_attentions=True).attentions
    return torch.stack([weights for weights in told if weights is not None])


def gradients(model: Any) -> Tensor:
    """Of a text's loss by each weight that the model visits."""
    model.zero_grad()
    model(input_ids=TEXT, labels=TEXT, use_cache=False).loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def largest(values: Tensor) -> Tensor:
    return values.abs().max()


def forced(cache: str) -> Callable[[Any], Tensor]:
    return lambda model: greedy(model, cache_implementation=cache)


# What is done to a model


def attention(kind: str) -> Change:
    def set_to(model: Any, _recipe: Recipe) -> Any:
        model.set_attn_implementation(kind)
        return model

    return set_to


def offloaded_to_disk(model: Any, _recipe: Recipe) -> Any:
    from accelerate import disk_offload

    return disk_offload(model, _folder_of(model), execution_device=torch.device("cpu"))


def offloaded_to_cpu(model: Any, _recipe: Recipe) -> Any:
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device=torch.device("cpu"))


def split(model: Any, _recipe: Recipe) -> Any:
    """Every second layer in memory, the others on disk."""
    from accelerate import dispatch_model

    home = model.get_decoder().layers
    prefix = next(name for name, module in model.named_modules() if module is home)
    places = {f"{prefix}.{i}": "disk" if i % 2 else "cpu" for i in range(len(home))}
    places |= {name: "cpu" for name, _ in model.named_modules() if name and not _around(name, prefix)}
    return dispatch_model(model, places, main_device="cpu", offload_dir=_folder_of(model))


def _folder_of(model: Any) -> str:
    """A folder that is there as long as the model is."""
    folder = tempfile.mkdtemp()
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return folder


def _around(name: str, prefix: str) -> bool:
    """Whether a module holds the layers or is held by them, so that it has no place of its own."""
    return prefix.startswith(f"{name}.") or name == prefix or name.startswith(f"{prefix}.")


def cast(dtype: torch.dtype) -> Change:
    return lambda model, _recipe: model.to(dtype)


def in_int8(model: Any, _recipe: Recipe) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig(version=2))
    return model


def in_gguf_blocks(model: Any, _recipe: Recipe) -> Any:
    """Layers whose weights stay in the blocks of a GGUF file, as transformers keeps them where it has a kernel.

    Its kernels come from the Hub; in their place transformers' own unpacking stands here.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize
    from transformers.integrations.gguf import utils as gguf
    from transformers.integrations.gguf.dequant import dequantize

    def product(weight: Tensor, x: Tensor, kind: int, rows: int) -> Tensor:
        return x @ dequantize(weight, kind, x.dtype).reshape(rows, -1).T

    gguf.mul_mat_vec = product
    kind, layers = GGMLQuantizationType.Q8_0, model.get_decoder().layers
    for module in list(layers.modules()):
        for name, linear in list(module.named_children()):
            if type(linear) is nn.Linear and linear.in_features % 32 == 0:
                packed = gguf.GgufLinear(linear.in_features, linear.out_features, kind, linear.bias is not None)
                packed.weight.data = torch.from_numpy(quantize(linear.weight.detach().numpy(), kind))
                packed.bias = linear.bias
                setattr(module, name, packed)
    return model


def layers_compiled(model: Any, _recipe: Recipe) -> Any:
    for layer in model.get_decoder().layers:
        layer.compile()
    return model


def with_adapter(model: Any, _recipe: Recipe) -> Any:
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


def in_training(model: Any, _recipe: Recipe) -> Any:
    model.activation_checkpointing_enable()
    return model.train()


def weights_tied(copied: Any, recipe: Recipe) -> Any:
    """Every later visit of a layer on the weights of its first: what a stacked copy needs to learn as a sling does."""
    visits = copied.get_decoder().layers
    for visit, layer in zip(visits, recipe.repeat_map, strict=True):
        first = visits[recipe.repeat_map.index(layer)]
        for module, other in zip(visit.modules(), first.modules(), strict=True):
            module._parameters = other._parameters
    return copied


def trained_tied(copied: Any, recipe: Recipe) -> Any:
    return in_training(weights_tied(copied, recipe), recipe)


def copied_deeply(model: Any, _recipe: Recipe) -> Any:
    return copy.deepcopy(model)


def pickled(model: Any, _recipe: Recipe) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: Any, _recipe: Recipe) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
    return model


def exported(model: Any, recipe: Recipe) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        place = export(model, recipe, Path(folder) / "stacked", max_shard_size="100MB")
        return type(model).from_pretrained(place, dtype=model.dtype).eval()


WAYS = (
    # attention and caches
    Way("eager attention", greedy, before=attention("eager")),
    Way("SDPA", greedy, before=attention("sdpa")),
    Way("flex attention", logits, before=attention("flex_attention"), needs="g++", slow=True, allowed=HALF),
    Way("flex attention, cached", greedy, before=attention("flex_attention"), needs="g++", slow=True, allowed=HALF),
    Way("attention set while slung", greedy, after=attention("eager")),
    Way("dynamic cache", forced("dynamic")),
    Way("static cache", forced("static")),
    Way("sliding cache", forced("sliding_window")),
    Way("offloaded cache", forced("offloaded")),
    Way("left-padded batch", padded),
    Way("two turns on one cache", two_turns),
    # generation
    Way("greedy", sequences),
    Way("sampling, seeded", sampled),
    Way("beam search", lambda model: sequences(model, num_beams=3)),
    Way("assisted by a view of its base", drafted, again=sequences),
    Way("assisted by its prompt", lambda model: sequences(model, prompt_lookup_num_tokens=2), again=sequences),
    Way("streaming", streamed),
    Way("hidden states of each visit", hidden_states, plain=True),
    Way("attentions of each visit", attentions, before=attention("eager")),
    # placement and precision
    Way("offloaded to CPU memory", greedy, before=offloaded_to_cpu, reference=unchanged),
    Way("offloaded to disk", greedy, before=offloaded_to_disk, reference=unchanged),
    Way("split by a device map", greedy, before=split, reference=unchanged),
    Way("bfloat16", greedy, before=cast(torch.bfloat16), allowed=HALF),
    Way("float16", greedy, before=cast(torch.float16), allowed=HALF),
    Way("cast while slung", greedy, after=cast(torch.bfloat16), allowed=HALF),
    Way("int8 weights (torchao)", greedy, before=in_int8, needs="torchao"),
    Way("GGUF blocks", greedy, before=in_gguf_blocks),
    # compilation
    Way("layers compiled", logits, before=layers_compiled, needs="g++", slow=True, allowed=HALF),
    # adapters and gradients
    Way("PEFT adapter", greedy, before=with_adapter, own=True, needs="peft"),
    Way("gradients", gradients, reference=weights_tied, unit=largest),
    Way("gradients, checkpointed", gradients, before=in_training, reference=trained_tied, unit=largest),
    # copies and files
    Way("deepcopy", greedy, after=copied_deeply, reference=unchanged),
    Way("pickle", greedy, after=pickled, reference=unchanged),
    Way("save_pretrained", greedy, after=saved, reference=unchanged),
    Way("stacked export", greedy, after=exported, reference=unchanged),
)


def run(way: Way, name: str, make: Callable[[], Any]) -> Row:
    """One row: a base, and for each recipe a sling and a view against the stacked copy, in this way."""
    row = Row(way.name, name)
    if lacking := _lacking(way.needs):
        row.outcome, row.reason = "skipped", lacking
        return row
    asked = {t: recipe for t, recipe in recipes(base_depth(make())).items() if not (way.plain and t == "damped")}
    wrong, refused = [], {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for title, recipe in asked.items():
            base = _reading(lambda recipe=recipe: way.read(way.before(make(), recipe)))
            if not isinstance(base, Tensor):
                row.outcome, row.reason = "base fails", _word(base)
                return row
            right = _reading(lambda recipe=recipe: (way.again or way.read)(_reference(way, make, recipe)))
            for how in (David.sling, David.view):
                told = _compare(row, way, how, way.before(make(), recipe), recipe, base, right)
                if isinstance(told, DavidError):
                    refused[title] = str(told)
                elif told:
                    wrong.append(f"{title}, {how.__name__}: {told}")
    row.reason = "; ".join(wrong or [f"{title} refused: {told}" for title, told in refused.items()])
    row.outcome = "WRONG" if wrong else "refused" if refused.keys() == asked.keys() else "exact"
    return row


def _compare(
    row: Row, way: Way, how: Any, model: Any, recipe: Recipe, base: Tensor, right: Tensor | Exception
) -> str | DavidError:
    """What is wrong with one sling or view, or why it is refused; the row's difference is kept."""
    found = _reading(lambda: way.read(way.after(how(model, recipe), recipe)))
    if isinstance(found, DavidError):
        return found
    if not isinstance(found, Tensor) or not isinstance(right, Tensor):
        return f"{_word(found)}, where the stacked copy: {_word(right)}"
    apart = far(found, right, way.unit)
    row.difference = max(row.difference, apart)
    if apart > way.allowed:
        return f"{apart:.1e} from the stacked copy"
    if way.after is unchanged and not _same(_reading(lambda: way.read(David.reset(model))), base):
        return "the base is not what it was"
    return ""


def _reference(way: Way, make: Callable[[], Any], recipe: Recipe) -> Any:
    """The stacked copy in the same way: done to it what is done to the base and to the sling, or what stands for it."""
    if way.own:
        made = way.before(make(), recipe)
        return stacked(unwrapped(made), recipe)
    copied = stacked(make(), recipe)
    if way.reference is None:
        return way.after(way.before(copied, recipe), recipe)
    return way.reference(copied, recipe)


def _reading(read: Callable[[], Tensor]) -> Tensor | Exception:
    """What a way gives, or why it gives nothing."""
    try:
        return read().double()
    except Exception as error:  # any kind: the code of any model and package
        return error


def _word(found: Tensor | Exception) -> str:
    if isinstance(found, Tensor):
        return "runs"
    return f"{type(found).__name__}: {(str(found).strip() or 'no words').splitlines()[0][:160]}"


def _same(one: Tensor | Exception, other: Tensor) -> bool:
    return isinstance(one, Tensor) and torch.equal(one, other)


def far(one: Tensor, other: Tensor, unit: Callable[[Tensor], Tensor] = torch.std) -> float:
    """The largest difference, in a unit of what is right; infinite where the shapes differ."""
    if one.shape != other.shape:
        return float("inf")
    return 0.0 if torch.equal(one, other) else float((one - other).abs().max() / unit(other))


def _lacking(needs: str) -> str:
    """What to install for a way, if it is not there."""
    if needs == "g++":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "no C++ compiler: install g++"
        return ""
    return f"{needs} is not installed: pip install {needs}" if needs and not importlib.util.find_spec(needs) else ""


def maker(name: str) -> Callable[[], Any]:
    """What gives a fresh base each time."""
    if name != "demo":
        return lambda: tiny_named(name)
    model, _ = load_model("demo", device="cpu")
    return lambda: copy.deepcopy(model)


def table(names: list[str], ways: list[str]) -> Iterator[Row]:
    for name in names:
        make = maker(name)
        for way in WAYS:
            if not ways or way.name in ways:
                yield run(way, name, make)


def parsed_options(description: str, models: Iterable[str]) -> argparse.Namespace:
    """The options of a script that prints a table of ways and models."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", help="left out, all")
    parser.add_argument("--models", nargs="*", default=list(models), help="demo, or names of tiny models")
    parser.add_argument("--out", type=Path, help="folder for results.csv")
    return parser.parse_args()


def main() -> None:
    options = parsed_options(__doc__ or "", MODELS)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    start, rows = time.monotonic(), []
    for row in table(options.models, options.ways):
        rows.append(row)
        print(f"{row.way:<32} {row.model:<12} {row.outcome:<10} {row.difference:.0e}  {row.reason[:200]}", flush=True)
    print(f"\n{time.monotonic() - start:.0f} s")
    if options.out:
        with (options.out / "results.csv").open("w", newline="", encoding="utf-8") as file:
            written = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
            written.writeheader()
            written.writerows(asdict(row) | {"difference": f"{row.difference:.1e}"} for row in rows)
    sys.exit(any(row.outcome == "WRONG" for row in rows))


if __name__ == "__main__":
    main()
