"""What people do to a model: one function a step. A step that makes no sense in the model's state is not done."""

import copy
import pickle
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import remove_hook_from_submodules
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize, prune

from david import David, Recipe
from david.errors import SlingError
from david.sling import adapters, locate
from david.sling.in_place import can_run
from david.sling.stacked_copy import stacked
from experiments.sequences.twins import (
    HALF,
    LOOSE,
    TEXT,
    DifferenceError,
    Run,
    both,
    check,
    logits,
    must_refuse,
    try_on_copy,
    unless,
)

Step = Callable[[Run], None]

# Recipes


def sling(run: Run) -> None:
    recipe = run.new_recipe()
    David.sling(run.handle(), recipe)
    _forget_visits(run)
    run.recipe = recipe
    run.steps[-1] += f" {recipe}"


def reset(run: Run) -> None:
    unless(run.recipe is None)
    David.reset(run.handle())
    _forget_visits(run)
    run.recipe = None


def _forget_visits(run: Run) -> None:
    """The visits' adapters are gone with them; David's warning says of those beside the layers to unload them."""
    if run.copied is not None:
        if adapters.has_adapters(run.model):
            run.adapted[0].unload()  # type: ignore[index]
        run.adapted, run.copied = None, None


def slings_within(run: Run) -> None:
    """Another recipe for the length of a `with`, in which another thread is refused."""
    unless(run.copied is not None, run.offloaded, run.compiled)
    recipe, before = run.new_recipe(), run.recipe
    with David.slung(run.handle(), recipe), ThreadPoolExecutor(1) as pool:
        run.recipe = recipe
        check(run)
        error = pool.submit(David.sling, run.model, recipe).exception()
        if not isinstance(error, SlingError):
            raise DifferenceError("another thread was not refused")
        run.refusals.append(re.sub(r"\(ThreadPool[^)]*\)", "(NAME)", str(error)))
        check(run)
    run.recipe = before


def runs_in_threads(run: Run) -> None:
    """Views in two threads, beside the model itself."""
    unless(run.offloaded, run.copied is not None, run.compiled)
    recipes = [run.new_recipe(), run.new_recipe()]
    views = [_inner(run, David.view(run.handle(), recipe)) for recipe in recipes]
    unless(any(type(view) is not type(run.model) for view in views))  # of a handle inside, which has no logits
    models = [run.model, *views]
    right = [logits(run.reference()), *(logits(stacked(run.twin, recipe)) for recipe in recipes)]
    with ThreadPoolExecutor(3) as pool:
        for got, wanted in zip(pool.map(logits, models * 3), right * 3, strict=True):
            run.compare(got, wanted, "in a thread")


def _inner(run: Run, view: Any) -> Any:
    wrapped = hasattr(view, "peft_config") and not isinstance(view, type(run.model))
    return view.base_model.model if wrapped else view


def views(run: Run) -> None:
    unless(run.offloaded, run.copied is not None)
    recipe = Recipe([0, *range(len(locate.find(run.twin).layers))])
    unless(not can_run(run.model, recipe))
    view = _inner(run, David.view(run.handle(), recipe))
    unless(not isinstance(view, type(run.model)))  # of a handle inside, which has no logits
    run.compare(logits(view), logits(stacked(run.twin, recipe)), "view")


def generates(run: Run) -> None:
    """Greedy text, read with a cache."""
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    unless(run.allowed >= HALF)
    if not torch.equal(run.model.generate(TEXT, **options), run.reference().generate(TEXT, **options)):
        raise DifferenceError("another text")


# Adapters


def puts_adapter_on(run: Run) -> None:
    import peft

    unless(run.adapted, run.offloaded, run.compiled)
    parts = {name.rpartition(".")[2] for name, _ in locate.find(run.twin).layers.named_modules()}
    names = sorted(parts & {"q_proj", "v_proj", "o_proj", "query_key_value", "dense", "c_attn", "fc1"})
    config = {"target_modules": run.draw.sample(names, min(2, len(names))), "init_lora_weights": False, "r": 2}

    def put_on(target: Any) -> Any:
        torch.manual_seed(len(run.steps))
        return peft.get_peft_model(target, peft.LoraConfig(**config)).eval()

    reference = run.twin if run.recipe is None else stacked(run.twin, run.recipe)
    try_on_copy(run, reference, put_on)
    run.adapted = put_on(run.model), put_on(reference)
    run.copied = None if run.recipe is None else reference


def merges(run: Run) -> None:
    unless(run.adapted is None, run.offloaded, run.compiled)
    wrapped, reference = run.adapted  # type: ignore[misc]
    unload = run.draw.random() < 0.5
    if run.copied is not None:
        must_refuse(run, wrapped.merge_and_unload if unload else wrapped.merge_adapter)
        return
    unless(run.recipe is not None and unload)  # the base would keep its adapters: a warning says so
    try_on_copy(run, reference, lambda model: model.merge_and_unload() if unload else model.merge_adapter())
    if unload:
        for model in (wrapped, reference):
            model.merge_and_unload()
        run.adapted = None
    else:
        wrapped.merge_adapter()
        wrapped.unmerge_adapter()
        _merge_and_unmerge(run, reference)


def _merge_and_unmerge(run: Run, reference: Any) -> None:
    """Merge and unmerge the layers that the model runs: PEFT leaves rounding in their weights, and in no others."""
    layers = locate.find(run.twin).layers
    left_out = [] if run.recipe is None else [layer for k, layer in enumerate(layers) if k not in run.recipe.repeat_map]
    idle = {id(part) for layer in left_out for part in layer.modules()}
    for part in reference.modules():
        if hasattr(part, "merged_adapters") and hasattr(part, "unmerge") and id(part) not in idle:
            part.merge()
            part.unmerge()


def takes_adapters_off(run: Run) -> None:
    unless(run.adapted is None, run.recipe is not None and run.copied is None, run.offloaded, run.compiled)
    for model in run.adapted:  # type: ignore[union-attr]
        model.unload()
    run.adapted, run.copied = None, None


def switches_adapters(run: Run) -> None:
    unless(run.adapted is None)
    wrapped, reference = run.adapted  # type: ignore[misc]
    with wrapped.disable_adapter(), reference.disable_adapter():
        check(run)


# Weights


def trains(run: Run) -> None:
    """A step of SGD on all that learns; where layers are visited again, on a stacked copy that is tied to the twin."""
    unless(run.quantised, run.offloaded, run.twin.dtype != torch.float32)
    for model in (run.model, run.twin):  # PEFT froze what it was put on, and leaves it so
        unless(run.adapted is None and not all(weight.requires_grad for weight in model.parameters()))
    reference = run.reference()
    tied = run.recipe is not None and run.copied is None
    if tied:
        unless(hasattr(locate.find(run.twin).owner, "per_layer_model_projection"))  # the copy's are cut, not tied
        _tie_copy(reference, run.twin, run.recipe)
    for target in (run.model, reference):
        weights = [weight for weight in target.parameters() if weight.requires_grad]
        optimizer = torch.optim.SGD(weights, lr=1e-3)
        target(TEXT, labels=TEXT, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    run.allowed = max(run.allowed, LOOSE)
    run.trained = run.trained or tied or run.compiled


def _tie_copy(copied: Any, twin: Any, recipe: Any) -> None:
    """Put a twin's parameters into a stacked copy of it."""
    visits, layers = locate.find(copied).layers, locate.find(twin).layers
    within = {id(module) for module in visits.modules()}
    by_name = dict(twin.named_modules())
    pairs = [(module, by_name[name]) for name, module in copied.named_modules() if id(module) not in within]
    for visit, layer in zip(visits, recipe.repeat_map, strict=True):
        pairs += zip(visit.modules(), layers[layer].modules(), strict=True)
    for module, other in pairs:
        module._parameters = dict(other._parameters)


def quantises(run: Run) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    unless(run.quantised, run.offloaded, run.compiled, run.adapted)
    config = Int8WeightOnlyConfig(version=2)
    unless(hasattr(locate.find(run.twin).owner, "per_layer_model_projection"))  # the copy cuts it: torchao cannot
    unless(not any(type(part) is nn.Linear for part in locate.find(run.twin).layers.modules()))
    if run.recipe is not None:
        try_on_copy(run, run.twin, lambda model: quantize_(model, config))
        unless(hasattr(run.model, "vision_tower") or hasattr(run.model.base_model, "vision_tower"))  # quantised first
        must_refuse(run, lambda: quantize_(run.model, config))
        return
    both(run, lambda model: quantize_(model, config))
    run.quantised = True


def prunes(run: Run) -> None:
    def pruned(part: nn.Module) -> None:
        prune.random_unstructured(part, "weight", amount=0.3)
        prune.remove(part, "weight")

    _rewrites(run, pruned)


def parametrizes(run: Run) -> None:
    """Put a function of the weight in its place, then the weight that it computes."""

    def parametrized(part: nn.Module) -> None:
        parametrize.register_parametrization(part, "weight", _Halved())
        parametrize.remove_parametrizations(part, "weight")

    _rewrites(run, parametrized)


class _Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def _rewrites(run: Run, change: Callable[[nn.Module], None]) -> None:
    """Change a weight of one layer, which is refused in a visit."""
    unless(run.quantised, run.offloaded, run.compiled)
    parts = dict(locate.find(run.model).layers.named_modules())
    linear = [name for name, part in parts.items() if isinstance(part, nn.Linear) and "lora_" not in name]
    unless(not linear)
    name = run.draw.choice(linear)
    name += ".base_layer" if hasattr(parts[name], "base_layer") else ""
    if run.recipe is not None:
        must_refuse(run, lambda: change(locate.find(run.model).layers.get_submodule(name)))
    else:
        both(run, lambda model: change(locate.find(model).layers.get_submodule(name)))


def calls_functionally(run: Run) -> None:
    unless(run.quantised, run.offloaded, run.adapted, run.compiled)
    factor = run.draw.choice((0.9, 1.1))
    other = copy.deepcopy(run.twin)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(factor)
    other = other if run.recipe is None else stacked(other, run.recipe)
    given = {name: weight.detach() * factor for name, weight in run.model.named_parameters()}
    with torch.no_grad():
        called = functional_call(run.model, given, (TEXT,), {"use_cache": False}).logits.float()
    run.compare(called, logits(other), "functional_call")


def loads_own_state(run: Run) -> None:
    unless(run.quantised, run.offloaded)
    run.model.load_state_dict(copy.deepcopy(run.model.state_dict()))


def resizes(run: Run) -> None:
    unless(run.quantised, run.offloaded)
    rows = run.twin.get_input_embeddings().weight.shape[0] + run.draw.choice((3, 8))

    def change(model: Any) -> None:
        model.resize_token_embeddings(rows, mean_resizing=False)
        model.eval()  # transformers leaves a new output layer in training mode

    both(run, change)


def ties(run: Run) -> None:
    """Tie the embeddings, or give the output its own."""
    unless(run.quantised, run.offloaded, run.twin.get_output_embeddings() is None, run.adapted)
    tied = run.twin.get_output_embeddings().weight is run.twin.get_input_embeddings().weight
    shapes = [part.weight.shape for part in (run.twin.get_output_embeddings(), run.twin.get_input_embeddings())]
    unless(shapes[0] != shapes[1])

    def change(model: Any) -> None:
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = not tied
        if tied:
            head = model.get_output_embeddings()
            head.weight = nn.Parameter(head.weight.detach().clone())
        else:
            model.tie_weights()

    both(run, change)


# Places, numbers, files


def offloads(run: Run) -> None:
    unless(run.quantised, run.offloaded, run.compiled)
    if run.draw.random() < 0.5:
        cpu_offload(run.model, execution_device="cpu")
    else:
        disk_offload(run.model, run.folders.enter_context(tempfile.TemporaryDirectory()), execution_device="cpu")
    run.offloaded, run.allowed = True, max(run.allowed, LOOSE)


def comes_back(run: Run) -> None:
    unless(not run.offloaded, run.recipe is not None)
    remove_hook_from_submodules(run.model)
    run.model.tie_weights()  # accelerate brings tied weights back one by one
    run.offloaded = False


def casts(run: Run) -> None:
    unless(run.offloaded)
    kind = run.draw.choice((torch.float64, torch.float32, torch.bfloat16))
    both(run, lambda model: model.to(kind))
    if kind is torch.bfloat16:
        run.allowed = max(run.allowed, HALF)


def moves(run: Run) -> None:
    """To another type and back with new parameters, as a move between kinds of devices makes them."""
    unless(run.quantised, run.offloaded)
    unless(run.adapted)  # their weights need not be of the model's type
    kind, before = torch.float64, run.twin.dtype

    def moved(model: Any) -> None:
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            model.to(kind).to(before)
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)
        model.tie_weights()  # such a move unties the embeddings

    both(run, moved)


def changes_mode(run: Run) -> None:
    both(run, lambda model: model.train().eval())


def compiles(run: Run) -> None:
    """The whole model, or each layer that it runs. The reference is not compiled."""
    unless(run.compiled, run.offloaded, run.quantised)
    whole = run.draw.random() < 0.5
    for part in [run.model] if whole else locate.find(run.model).layers:
        part.compile(backend="eager")
    run.steps[-1] += " whole" if whole else " layers"
    run.compiled = True


def copies(run: Run) -> None:
    unless(run.offloaded)
    deep = run.quantised or run.adapted or run.draw.random() < 0.5  # torchao's models cannot be pickled
    if run.adapted is None:
        run.model = copy.deepcopy(run.model) if deep else pickle.loads(pickle.dumps(run.model))
    else:
        wrapped = copy.deepcopy(run.adapted[0])
        run.model, run.adapted = wrapped.base_model.model, (wrapped, run.adapted[1])
    run.compiled = False


def saves(run: Run) -> None:
    """Save, and go on with what is read again."""
    unless(run.quantised, run.offloaded)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        if run.recipe is not None:
            outer = [run.model] if run.adapted is None or run.copied is not None else [run.model, run.adapted[0]]
            for model in outer:
                must_refuse(run, lambda model=model: model.save_pretrained(folder))  # type: ignore[misc]
                must_refuse(run, lambda model=model: model.push_to_hub("nobody/nothing"))  # type: ignore[misc]
            if folder.exists():
                raise DifferenceError("the refusal left a folder")
            return
        unless(run.adapted)
        models = []
        for model in (run.model, run.twin):
            model.save_pretrained(folder)
            models.append(type(model).from_pretrained(folder, dtype=run.twin.dtype).eval())
    run.model, run.twin = models
    run.compiled = False


STEPS: dict[str, tuple[Step, float]] = {  # the second number says how often a step is drawn
    "sling": (sling, 6), "reset": (reset, 3), "slung": (slings_within, 2), "threads": (runs_in_threads, 2),
    "view": (views, 2), "generate": (generates, 1),
    "adapter on": (puts_adapter_on, 4), "merge": (merges, 4), "adapter off": (takes_adapters_off, 1),
    "adapter switched": (switches_adapters, 2), "train": (trains, 3), "quantise": (quantises, 2), "prune": (prunes, 2),
    "parametrize": (parametrizes, 1),
    "functional_call": (calls_functionally, 2), "load its own state": (loads_own_state, 1),
    "resize embeddings": (resizes, 2), "tie": (ties, 2), "offload": (offloads, 2), "bring back": (comes_back, 2),
    "cast": (casts, 2), "move": (moves, 2), "train and eval mode": (changes_mode, 1), "compile": (compiles, 0.3),
    "copy": (copies, 1), "save": (saves, 2),
}  # fmt: skip
