"""The commands that let a model write: `generate`."""

import math
from typing import Annotated, Any

import typer

from david.errors import DavidError, one_line
from david.inputs import check_recipe, load, recipe_of
from david.options import Device, Dtype, Model, Ratios, RecipeOption, Seed


def generate(
    model: Model = "demo",
    prompt: Annotated[str, typer.Option(help="What the model is to go on from.")] = "The capital of France is",
    recipe: RecipeOption = None,
    ratios: Ratios = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.0,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Let a model write on from a prompt, as its base or slung to a recipe.

    Example: david generate demo --recipe "0:12, 8:30" --prompt "Once upon a time"
    """
    if not math.isfinite(temperature):
        raise DavidError(f"--temperature must be a number from 0 on; got {temperature}")
    check_recipe(recipe, ratios)
    loaded, tokenizer = load(model, dtype, device)
    import torch
    from transformers import TextStreamer

    from david.sling import base_depth, sling

    if recipe is not None or ratios is not None:
        sling(loaded, recipe_of(recipe, ratios, base_depth(loaded), loaded))
    if chat:
        if not tokenizer.chat_template:
            raise DavidError(f"{model} has no chat template: leave --chat out")
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not chat).to(loaded.device)
    if inputs["input_ids"].shape[1] == 0:
        raise DavidError("the prompt is empty: give --prompt some text")
    torch.manual_seed(seed)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    streamer = TextStreamer(tokenizer, skip_prompt=chat, skip_special_tokens=True)
    try:
        loaded.generate(**inputs, max_new_tokens=max_new_tokens, streamer=streamer, **sampling)
    except RuntimeError as error:  # probabilities that are no numbers
        raise DavidError(f"no token can be drawn at temperature {temperature:g}: {one_line(error)}") from error
