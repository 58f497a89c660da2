"""Talking to recipes: kept caches change nothing, weights are shared, a conversation stays usable; the terminal."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import StringIO
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from david.chat.conversation import Chat, template_tokens
from david.chat.generation import Answer, Sampling, TextGenerator
from david.cli import chat_repl
from david.errors import DavidError, RecipeError, SlingError
from david.recipe.recipe import Recipe
from david.sling.forward import CACHE
from david.sling.in_place import sling
from david.sling.stacked_copy import stacked
from david.support.text import printable
from tests.helpers.command import Run, refusal
from tests.tiny_models import NOT_BUILT, TYPES, tiny_model, tiny_named

AGAIN, DAMPED = "0:4, 2:6", "0:6, 3:6*0.5"
TEMPLATE = "{% for m in messages %}w1 {{ m['role'] }} {{ m['content'] }} w2 {% endfor %}w1 assistant "
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TEMPLATE


@pytest.fixture
def tokenizer() -> Any:
    """Words w0 … w96, and the names of those who speak."""
    words = {f"w{i}": i for i in range(94)} | {"user": 94, "assistant": 95, "system": 96}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0")
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def endless(tiny: Any) -> Any:
    """A tiny model that never comes to an end by itself."""
    tiny.generation_config.eos_token_id = None
    return tiny


def greedy(model: Any, prompt: list[int], many: int) -> list[int]:
    """Tokens drawn without any cache."""
    ids = torch.tensor([prompt])
    for _ in range(many):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


def words(tokens: list[int]) -> str:
    """Their text; w0, the unknown word, is a special token."""
    return " ".join(f"w{t}" if t < 94 else ("user", "assistant", "system")[t - 94] for t in tokens if t)


# ---- a voice and its cache


class Numbers:
    """A tokenizer whose text is the numbers of the tokens."""

    eos_token_id = None

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(f" {token}" for token in tokens)


def written(voice: TextGenerator, prompt: list[int], many: int = 8) -> list[int]:
    """What a voice writes, as tokens."""
    return [int(word) for word in "".join(voice.write(Numbers(), prompt, Sampling(max_new_tokens=many))).split()]


def held_against_a_fresh_run(kind: str) -> tuple[int, int, int]:
    """Three turns with a kept cache, the last of which takes some back: tokens run, each held against a fresh run."""
    model = tiny_named(kind)
    model.generation_config.eos_token_id = None
    recipe = Recipe.parse(AGAIN)
    voice, ran = TextGenerator("kept", recipe, model), []
    prompt = [5 + 7 * i % 80 for i in range(14)]
    for more, back in (([], 0), ([9, 33, 14, 60, 71], 0), ([8, 44], 3)):
        prompt = prompt[: len(prompt) - back] + more
        fresh = TextGenerator("fresh", recipe, model)
        new = written(voice, prompt)
        assert new == written(fresh, prompt)
        assert voice.answer is not None
        assert voice.answer.prompt_tokens == len(prompt)
        ran.append(voice.answer.run_tokens)
        prompt += new
    return ran[0], ran[1], ran[2]


@pytest.mark.parametrize(
    ("kind", "ran"),
    [
        ("llama", (14, 1 + 5, 2)),  # the last token of an answer was drawn, and not run
        ("gpt2", (14, 6, 2)),
        ("gemma3_text", (14, 6, 34)),  # what has left a window does not come back: all of it again
        ("qwen3_next", (14, 6, 34)),  # nor what went into a state
        ("jamba", (14, 27, 34)),  # reads several tokens as if nothing had come before: no cache is kept
        ("mamba2", (14, 27, 34)),
    ],
)
def test_a_kept_cache_runs_the_new_tokens_alone_and_changes_nothing(kind: str, ran: tuple[int, int, int]) -> None:
    assert held_against_a_fresh_run(kind) == ran


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in NOT_BUILT][::2])  # every second one
def test_a_kept_cache_changes_nothing_on_any_type(kind: str) -> None:
    model = tiny_named(kind)
    try:
        TextGenerator("any", Recipe.parse(AGAIN), model)
    except SlingError as error:
        pytest.skip(str(error)[:100])
    try:
        model.generate(torch.arange(5, 19)[None], max_new_tokens=8)
    except Exception as error:  # of its own code
        pytest.skip(f"its own generate takes no plain tokens: {str(error)[:80]}")
    held_against_a_fresh_run(kind)


def test_a_voice_writes_what_the_stacked_copy_writes(endless: Any) -> None:
    recipe = Recipe.parse(DAMPED)
    expected = greedy(stacked(endless, recipe), [5, 6, 7], 8)
    assert written(TextGenerator("damped", recipe, endless), [5, 6, 7]) == expected
    assert expected != greedy(endless, [5, 6, 7], 8)


def test_who_stops_reading_stops_the_writing_behind_a_whole_token(endless: Any) -> None:
    voice, whole = (
        TextGenerator("base", Recipe.identity(6), endless),
        written(TextGenerator("b", Recipe.identity(6), endless), [5], 60),
    )
    pieces = voice.write(Numbers(), [5], Sampling(max_new_tokens=100))
    some = [int(piece) for piece in islice(pieces, 3)]
    pieces.close()
    assert some == whole[:3]
    assert voice.answer is not None
    assert not voice.answer.ended
    assert voice.answer.tokens == 3
    assert written(voice, [5, *some], 5) == written(TextGenerator("b", Recipe.identity(6), endless), [5, *some], 5)
    assert voice.answer.run_tokens == 1  # whatever was drawn behind what was read is cut off the cache again


def test_no_byte_of_weights_is_copied_for_any_number_of_recipes(tiny: Any, tokenizer: Any) -> None:
    own = {weight.data_ptr() for weight in tiny.state_dict().values()}
    chat = Chat(tiny, tokenizer, recipes=[f"0:6, {i}:6" for i in range(1, 6)])
    assert len(chat.voices) == 6
    held = [weight.data_ptr() for voice in chat.voices for weight in voice.model.state_dict().values()]
    assert len(held) > 6 * len(own)
    assert set(held) == own


def test_sampling_follows_the_seed_and_leaves_ones_own_random_numbers_alone(tiny: Any) -> None:
    voice = TextGenerator("base", Recipe.identity(6), tiny)

    def drawn(seed: int) -> str:
        return "".join(voice.write(Numbers(), [5, 6], Sampling(temperature=2.0, seed=seed, max_new_tokens=12)))

    before = torch.random.get_rng_state()
    texts = [drawn(seed) for seed in (1, 2, 3, 1)]
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3
    assert torch.equal(torch.random.get_rng_state(), before)


def test_top_p_leaves_the_unlikely_out(endless: Any) -> None:
    voice = TextGenerator("base", Recipe.identity(6), endless)
    prompt = [5, 6, 7]
    narrow = Sampling(temperature=3.0, top_p=1e-6, max_new_tokens=8)
    assert "".join(voice.write(Numbers(), prompt, narrow)).split() == [str(t) for t in greedy(endless, prompt, 8)]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": float("nan")},
        {"max_new_tokens": 0},
    ],
)
def test_a_way_of_drawing_that_is_none_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DavidError, match=f"{next(iter(options))}|temperature"):
        Sampling(**options)


def test_nothing_to_go_on_from_is_refused(tiny: Any) -> None:
    with pytest.raises(DavidError, match="the prompt is empty"):
        written(TextGenerator("base", Recipe.identity(6), tiny), [])


# ---- a conversation


def test_each_turn_runs_the_new_tokens_alone_and_answers_as_a_fresh_run_does(endless: Any, tokenizer: Any) -> None:
    chat = Chat(endless, tokenizer, recipes=[AGAIN], sampling=Sampling(max_new_tokens=6))
    copied = stacked(endless, Recipe.parse(AGAIN))
    ran = []
    for text in ("w5 w6", "w7", "w8 w9"):
        prompt = template_tokens(tokenizer, [*chat.messages, {"role": "user", "content": text}])
        assert chat.say(text) == words(greedy(copied, prompt, 6))
        assert chat.in_use.answer is not None
        assert chat.in_use.answer.prompt_tokens == len(prompt)
        ran.append(chat.in_use.answer.run_tokens)
    # the answer's last token and the sign behind it; a turn's three words and the message; two to begin the answer
    assert ran == [7, 2 + 3 + 1 + 2, 2 + 3 + 2 + 2]
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 3


def test_one_conversation_whoever_answers(endless: Any, tokenizer: Any) -> None:
    chat = Chat(endless, tokenizer, recipes=[AGAIN, DAMPED], sampling=Sampling(max_new_tokens=5))
    assert chat.in_use is chat.voices[1]
    first = chat.say("w5")
    chat.use(2)
    prompt = template_tokens(tokenizer, [*chat.messages, {"role": "user", "content": "w6"}])
    assert chat.say("w6") == words(greedy(stacked(endless, Recipe.parse(DAMPED)), prompt, 5))
    assert words(prompt).count(first) == 1
    assert [message.get("recipe") for message in chat.messages] == [None, str(chat.voices[1].recipe), None, DAMPED]
    assert chat.use("0:6") is chat.voices[0]
    assert chat.use("0:6, 0:6") is chat.voices[3]
    with pytest.raises(RecipeError, match="there is no recipe 4: expected 0, the base, to 3"):
        chat.use(4)


def test_the_same_message_is_answered_by_all_and_one_answer_is_kept(endless: Any, tokenizer: Any) -> None:
    chat = Chat(endless, tokenizer, recipes=[AGAIN, DAMPED], sampling=Sampling(max_new_tokens=5))
    chat.say("w5")
    prompt = template_tokens(tokenizer, [*chat.messages, {"role": "user", "content": "w6"}])
    found = chat.compare("w6")
    models_of = {"base": endless} | {text: stacked(endless, Recipe.parse(text)) for text in (AGAIN, DAMPED)}
    assert found == {name: words(greedy(model, prompt, 5)) for name, model in models_of.items()}
    assert len(set(found.values())) == 3
    assert chat.messages[2:] == [
        {"role": "user", "content": "w6"},
        {"role": "assistant", "content": found[AGAIN], "recipe": AGAIN},
    ]
    assert chat.compare(chat.take_back()) == found  # with caches that hold what is taken back
    chat.reset()
    assert chat.messages == []
    with pytest.raises(DavidError, match="nothing has been said yet"):
        chat.take_back()


def test_an_answer_is_drawn_again_otherwise_and_a_new_conversation_the_same(tiny: Any, tokenizer: Any) -> None:
    chat = Chat(tiny, tokenizer, sampling=Sampling(temperature=3.0, max_new_tokens=8))
    texts = [chat.say("w5")]
    texts += [chat.say(chat.take_back()) for _ in range(2)]
    assert len(set(texts)) == 3
    assert len(chat.messages) == 2
    chat.reset()
    assert chat.say("w5") == texts[0]


def test_a_sling_of_the_model_meanwhile_changes_no_conversation(endless: Any, tokenizer: Any) -> None:
    chat = Chat(sling(endless, DAMPED), tokenizer, recipes=[AGAIN], sampling=Sampling(max_new_tokens=5))
    first = chat.compare("w5")
    sling(endless, "0, 5")
    chat.reset()
    assert chat.compare("w5") == first
    assert len({*first.values()}) == 2


def test_a_text_before_the_conversation(endless: Any, tokenizer: Any) -> None:
    chat = Chat(endless, tokenizer, system="w9 w9", sampling=Sampling(max_new_tokens=4))
    plain = Chat(endless, tokenizer, sampling=Sampling(max_new_tokens=4))
    assert chat.say("w5") != plain.say("w5")
    chat.system = None
    chat.reset()
    plain.reset()
    assert chat.say("w5") == plain.say("w5")
    tokenizer.chat_template = NO_SYSTEM
    with pytest.raises(DavidError, match="does not take a system text: no system here"):
        chat.system = "w9"
    assert chat.system is None
    assert chat.say("w6")


def test_a_conversation_that_is_too_long_forgets_its_oldest_turns(endless: Any, tokenizer: Any) -> None:
    notes: list[str] = []
    chat = Chat(endless, tokenizer, sampling=Sampling(max_new_tokens=10), note=notes.append)
    assert chat.context == 128
    for number in count():
        chat.say(f"w{number + 3}")
        assert chat.in_use.answer is not None
        assert chat.in_use.answer.prompt_tokens + chat.in_use.answer.tokens <= 128
        if notes:
            break
    assert re.fullmatch(
        r"the conversation is longer than the 128 tokens that the model takes: the oldest \d of its \d turns are "
        r"forgotten",
        notes[0],
    )
    assert chat.messages[-2]["content"] == f"w{number + 3}"
    assert chat.messages[0]["content"] != "w3"
    chat.say("w40")  # some more than needed was let go, so that not every turn forgets one
    assert len(notes) == 1
    before = list(chat.messages)
    with pytest.raises(DavidError, match=r"the message comes to 20\d tokens, and the model takes 128, of which 10 are"):
        chat.say("w5 " * 200)
    assert chat.messages == before


def test_a_model_without_a_template_goes_on_from_a_plain_dialogue(demo: tuple[Any, Any]) -> None:
    model, tokenizer = demo
    template, tokenizer.chat_template = tokenizer.chat_template, None
    notes: list[str] = []
    try:
        chat = Chat(model, tokenizer, sampling=Sampling(max_new_tokens=24), note=notes.append)
        text = chat.say("What is the capital of France?")
    finally:
        tokenizer.chat_template = template
    assert notes == ["this model has no chat template: a plain dialogue of User: and Assistant: is used"]
    assert "Paris" in text
    assert "User:" not in text
    assert not text.startswith(" ")


def test_text_that_becomes_the_end_is_held_back_and_left_out(endless: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Scripted(Numbers):
        def decode(self, tokens: list[int], **_: Any) -> str:
            return "".join(("x", "Hello\n", "Us", "\n", "User", ": more", "no")[token] for token in tokens)

    class Told:
        ends: tuple[int, ...] = ()
        cache, tokens = None, ()

        def __init__(self, *_: Any) -> None: ...
        def __iter__(self) -> Iterator[int]:
            yield from (1, 2, 3, 4, 5, 6)

        def close(self) -> None: ...

    monkeypatch.setattr("david.chat.generation._GenerationThread", Told)
    voice = TextGenerator("base", Recipe.identity(6), endless)
    assert list(voice.write(Scripted(), [0], Sampling(), end="\nUser:")) == ["Hello", "\nUs"]
    assert voice.answer is not None
    assert (voice.answer.text, voice.answer.ended) == ("Hello\nUs", True)
    assert "".join(voice.write(Scripted(), [0], Sampling())) == "Hello\nUs\nUser: moreno"


def test_half_a_character_is_held_back(demo: tuple[Any, Any]) -> None:
    model, tokenizer = demo
    voice = TextGenerator("base", Recipe.identity(30), model)
    prompt = tokenizer("🦙🦙🦙🦙🦙🦙🦙🦙").input_ids
    pieces = list(voice.write(tokenizer, prompt, Sampling(max_new_tokens=9)))
    assert "🦙" in "".join(pieces)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces[:-1])


def test_an_error_leaves_the_conversation_as_it_was(endless: Any, tokenizer: Any) -> None:
    chat = Chat(endless, tokenizer, sampling=Sampling(max_new_tokens=4))
    chat.say("w5")
    before, broken = list(chat.messages), endless.lm_head.weight[:, 0].clone()
    with torch.no_grad():
        endless.lm_head.weight[:, 0] = float("nan")
    chat.sampling = Sampling(temperature=1.0)
    with pytest.raises(DavidError, match="no token can be drawn at temperature 1: "):
        chat.say("w6")
    assert chat.messages == before
    with torch.no_grad():
        endless.lm_head.weight[:, 0] = broken
    assert chat.say("w6")


def test_a_recipe_that_does_not_fit_is_refused_and_nothing_is_added(tiny: Any, tokenizer: Any) -> None:
    chat = Chat(tiny, tokenizer)
    with pytest.raises(RecipeError, match="layer 8 is out of range"):
        chat.add("0:9")
    assert len(chat.voices) == 1


def test_what_acts_unseen_on_a_screen_is_shown_and_lines_are_kept() -> None:
    assert printable("a\n\tb\r\x1b[2J\x07\u202ec 汉字") == "a\n\tb\\r\\x1b[2J\\x07\\u202ec 汉字"
    assert len(printable("x" * 5000)) == 5000


# ---- the command


@pytest.fixture
def typed(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`david chat`, given lines on its standard input."""

    def talk(line: str, text: str, *more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", StringIO(text))
        return run(line, *more)

    return talk


def test_messages_from_a_pipe_give_answers_and_nothing_else(typed: Any) -> None:
    code, out, err = typed("chat model --max-new-tokens 4 --temperature 0", "w5\n\nw6 w7")
    assert code == 0, err
    assert re.fullmatch(r"(w\d+ ?){1,4}\n(w\d+ ?){1,4}\n", out)
    assert "this model has no chat template" in err


def test_every_command_of_a_conversation(typed: Any, place: Path) -> None:
    lines = ["w5", "/recipes", "/use 2", "/compare w6 w7", "/add six.json", "/use six.json", "/retry", "/compare", ""]
    lines += ["/system w9", "/system", "/save said.json", "/use base", "/reset", " /w8", "/help", "/quit", "w9"]
    options = ("--recipe", AGAIN, "--recipe", DAMPED)
    code, out, err = typed("chat model --max-new-tokens 3 --temperature 0", "\n".join(lines), *options)
    assert code == 0, err
    found = [line.rstrip() for line in out.splitlines()]
    assert found[1:4] == [
        "  0  base  0:6  (6 visits)",
        f"* 1  {AGAIN}  (8 visits)",
        f"  2  {DAMPED}  (9 visits)",
    ]
    assert found[6] == f"* 2  {DAMPED}  (9 visits)"
    assert [line.partition("]")[0] for line in found[7:10]] == ["[base", f"[{AGAIN}", f"[{DAMPED}"]
    assert found[13] == "  3  six.json  0:4, 1:4*0.5, 4:6  (9 visits)"
    assert found[17] == "* 3  six.json  0:4, 1:4*0.5, 4:6  (9 visits)"
    compared = found[19:23]
    assert [line.partition("]")[0] for line in compared] == ["[base", f"[{AGAIN}", f"[{DAMPED}", "[six.json"]
    assert compared[3] == f"[six.json] {found[18]}"  # at temperature 0 the same again
    assert found[23:26] == ["system message set", "system message removed", "said.json: 4 messages"]
    said = json.loads((place / "said.json").read_text())
    (place / "said.json").unlink()
    assert [message["content"] for message in said["messages"]] == ["w5", found[0], "w6 w7", found[18]]
    assert said["messages"][3]["recipe"] == "six.json"
    assert found[26] == "* 0  base  0:6  (6 visits)"
    assert found[30] == "new conversation"
    assert {line.split()[0] for line in found[32:]} == {
        *("/use", "/compare", "/recipes", "/add", "/retry", "/reset", "/system", "/save", "/help", "/quit")
    }


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/sing", "unknown command /sing: /help lists the commands; to send it as a message, put a space first"),
        ("/", "unknown command /: "),
        ("/use", "/use requires the number of a recipe, base, or a recipe"),
        ("/use 7", "there is no recipe 7: expected 0, the base, to 0"),
        (f"/use {'9' * 30}", "there is no recipe 999"),
        ("/use 0:9", "layer 8 is out of range: the base has 6 layers"),
        ("/add", "cannot read ''"),
        ("/add seven.json", "layer 6 is out of range: the base has 6 layers"),
        ("/add /dev/zero", "/dev/zero: over 1000000 bytes: not a recipe"),
        ("/add \x1b[2J", r"cannot read '\x1b[2J'"),
        ("/retry", "nothing has been said yet"),
        ("/compare", "nothing has been said yet"),
        ("/save", "/save requires the name of a new file"),
        ("/save six.json", "six.json cannot be written: File exists"),
        ("/save no/such/place", "no/such/place cannot be written: No such file or directory"),
        ("/save \x00", "cannot be written: embedded null byte"),
        ("w5 " * 500, "the message comes to 50"),
    ],
)
def test_what_is_wrong_in_a_conversation_is_told_in_a_line_and_it_goes_on(line: str, says: str, typed: Any) -> None:
    code, out, err = typed("chat model --max-new-tokens 3 --temperature 0", f"{line}\nw5\n")
    said = [part for part in err.splitlines() if part.startswith("error: ")]
    assert code == 1
    assert len(said) == 1
    assert says in said[0]
    assert out.startswith("w")
    assert out.count("\n") == 1


def test_a_recipe_that_cannot_answer_does_not_silence_the_others(typed: Any) -> None:
    broken = "0:6*1e+308"
    options = ("--recipe", broken, "--recipe", AGAIN)
    code, out, err = typed("chat model --max-new-tokens 3", "/compare w5\n/use 2\nw6\n", *options)
    assert code == 1
    assert f"error: {broken}: no token can be drawn at temperature 0.3" in err
    assert [line.partition("]")[0] for line in out.splitlines()[:2]] == ["[base", f"[{AGAIN}"]
    assert out.splitlines()[-1].startswith("w")


def test_what_a_model_writes_moves_no_cursor(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("david.chat.conversation.Chat.stream", lambda *_: iter(["a\x1b[2J", "\u202eb\nc"]))
    _, out, _ = typed("chat model", "w5")
    assert out == "a\\x1b[2J\\u202eb\nc\n"


@pytest.mark.slow
def test_bytes_that_are_no_text_are_told_in_a_line(place: Path) -> None:
    code = "from david.cli.app import main; main()"
    line = ["chat", "model", "--max-new-tokens", "2"]
    found = subprocess.run(
        [sys.executable, "-c", code, *line], cwd=place, input=b"w5\n\xff\xfe\n", capture_output=True, check=False,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    assert found.returncode == 1
    assert b"error: standard input is not text in utf-8" in found.stderr
    assert b"Traceback" not in found.stderr


class Terminal:
    """`david chat` in a pseudo-terminal of its own."""

    def __init__(self, place: Path, *options: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(place)
            os.environ["TERM"] = "dumb"
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a job in the background has ignored
            code = "from david.cli.app import main; main()"
            os.execv(sys.executable, [sys.executable, "-c", code, "chat", "model", *options])
        self.seen = ""

    def until(self, text: str, seconds: float = 90) -> str:
        """What comes up to a text."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} does not come; so far: {self.seen!r}"
            try:
                new = os.read(self.fd, 4096)
            except OSError:  # Linux's way to say that nobody writes any more
                new = b""
            assert new, f"it ended without {text!r}: {self.seen!r}"
            self.seen += new.decode()
        came, _, self.seen = self.seen.partition(text)
        return came

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def press(self, key: str, text: str) -> None:
        """Press a key until a text comes: a signal between a prompt and Python's wait for keys is seen at the next."""
        for _ in range(20):
            time.sleep(0.2)
            self.type(key)
            with contextlib.suppress(AssertionError):
                self.until(text, seconds=5)
                return
        raise AssertionError(f"{text!r} does not come; so far: {self.seen[-500:]!r}")

    def ended(self, key: str) -> int:
        """The exit code, once a key has ended it."""
        for press in range(600):
            if press % 50 == 2:
                self.type(key)
            if (found := os.waitpid(self.pid, os.WNOHANG)) != (0, 0):
                return os.waitstatus_to_exitcode(found[1])
            time.sleep(0.1)
        raise AssertionError(f"it does not end; so far: {self.seen[-500:]!r}")


@pytest.fixture
def terminal(place: Path) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def start(*options: str) -> Terminal:
        made.append(Terminal(place, *options))
        return made[-1]

    yield start
    for one in made:
        os.close(one.fd)
        try:
            os.kill(one.pid, signal.SIGKILL)
            os.waitpid(one.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def test_a_conversation_at_a_terminal(terminal: Any, place: Path) -> None:
    config = place / "model" / "generation_config.json"
    kept = config.read_text()
    config.write_text(json.dumps(json.loads(kept) | {"eos_token_id": None}))
    try:
        at = terminal("--recipe", AGAIN, "--max-new-tokens", "100", "--temperature", "0")
        assert (
            "model, the base and 1 recipe on one set of weights. /help lists the commands; Ctrl-D leaves."
            in at.until("you>")
        )
    finally:
        config.write_text(kept)
    at.type("w5\n")
    assert f"[{AGAIN}] w" in at.until("you>").replace("\r", "")
    at.type("/nothing\n")
    assert "error: unknown command /nothing" in at.until("you>")
    at.press("\x03", "(press Ctrl-C again, or Ctrl-D, to leave)")
    at.until("you>")
    at.type("/recipes\n")
    assert f"* 1  {AGAIN}  (8 visits)" in at.until("you>")
    at.press("\x03", "(press Ctrl-C again, or Ctrl-D, to leave)")
    at.until("you>")
    assert at.ended("\x03") == 0


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(terminal: Any, place: Path) -> None:
    config = place / "model" / "config.json"
    kept = config.read_text()
    config.write_text(json.dumps(json.loads(kept) | {"max_position_embeddings": 100_000}))
    generation = place / "model" / "generation_config.json"
    kept_too = generation.read_text()
    generation.write_text(json.dumps(json.loads(kept_too) | {"eos_token_id": None}))
    try:
        at = terminal("--max-new-tokens", "90000", "--temperature", "0")
        at.until("you>")
    finally:
        config.write_text(kept)
        generation.write_text(kept_too)
    at.type("w5\n")
    at.until("w5")
    at.until(" w")  # it has begun
    at.press("\x03", "(stopped)")
    at.until("you>")
    at.type("/save stopped.json\n")
    at.until("stopped.json: 2 messages")
    at.until("you>")
    said = json.loads((place / "stopped.json").read_text())
    (place / "stopped.json").unlink()
    assert said["messages"][1]["content"].startswith("w")
    assert at.ended("\x04") == 0


# ---- generate


def test_several_recipes_in_one_go_are_told_apart(run: Run, place: Path) -> None:
    line = "generate model --max-new-tokens 5 --recipe base --recipe six.json"
    code, out, err = run(line, "--recipe", AGAIN, "--prompt", "w5 w6")
    assert code == 0, err
    alone = [run("generate model --max-new-tokens 5 --prompt", "w5 w6", *more)[1] for more in (
        (), ("--recipe", "six.json"), ("--recipe", AGAIN),
    )]  # fmt: skip
    assert out == f"== base\n{alone[0]}\n== six.json\n{alone[1]}\n== {AGAIN}\n{alone[2]}"
    assert len(set(alone)) == 3

    code, printed, _ = run(f"{line} --json", "--recipe", AGAIN, "--prompt", "w5 w6")
    found = json.loads(printed)
    assert [(one["recipe"], one["map"]) for one in found] == [
        ("base", "0:6"),
        ("six.json", "0:4, 1:4*0.5, 4:6"),
        (AGAIN, AGAIN),
    ]
    assert [f"w5 w6{one['text']}\n" for one in found] == alone
    assert all(1 <= one["tokens"] <= 5 and one["seconds"] > 0 for one in found)
    code, printed, _ = run("generate model --max-new-tokens 5 --ratios 0:0.5,0.2:1 --json")
    assert [one["map"] for one in json.loads(printed)] == [str(Recipe.from_ratios(6, [(0, 0.5), (0.2, 1)]))]


def test_a_prompt_from_standard_input(typed: Any, run: Run) -> None:
    code, out, err = typed("generate model --max-new-tokens 3 --prompt -", "w5 w6")
    assert code == 0, err
    assert out == run("generate model --max-new-tokens 3 --prompt", "w5 w6")[1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("generate model --system w5", "--system requires --chat"),
        ("generate model --chat", "model has no chat template: leave --chat out"),
        ("generate model --top-p 0", "top_p must be over 0 and at most 1; got 0.0"),
        ("chat model --top-p nan", "top_p must be over 0 and at most 1; got nan"),
        ("chat model --temperature inf", "the temperature must be a number from 0 on; got inf"),
        ("chat model --recipe 0:9", "layer 8 is out of range"),
        ("chat model --recipe broken.json", "broken.json: not a valid david.recipe"),
        ("generate model --recipe base --recipe seven.json", "layer 6 is out of range: the base has 6 layers"),
        ("chat nothing.json", "cannot read recipe nothing.json: No such file"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(line: str, says: str, run: Run, place: Path) -> None:
    assert says in refusal(run, place, line)


def test_the_demo_answers_in_its_template(demo: tuple[Any, Any]) -> None:
    model, tokenizer = demo
    chat = Chat(model, tokenizer, recipes=["0:12, 8:12*0.3, 12:30"], sampling=Sampling(max_new_tokens=12))
    found = chat.compare("What is the capital of France? Answer in one sentence.")
    assert all("Paris" in text for text in found.values())
    chat.say("And of Italy?")
    answer = chat.in_use.answer
    assert answer is not None
    assert answer.run_tokens < 25 < answer.prompt_tokens


def test_a_tiny_model_of_another_kind_talks(tokenizer: Any) -> None:
    chat = Chat(tiny_model("mixtral"), tokenizer, recipes=[AGAIN], sampling=Sampling(max_new_tokens=3))
    assert set(chat.compare("w5")) == {"base", AGAIN}


def test_a_message_that_is_not_answered_again_keeps_its_answer(endless: Any, tokenizer: Any) -> None:
    chat = Chat(endless, tokenizer, sampling=Sampling(max_new_tokens=2))
    chat.say("w5")
    before = list(chat.messages)
    with contextlib.suppress(KeyboardInterrupt), chat_repl._last_message(chat) as message:
        assert message == "w5"
        raise KeyboardInterrupt
    assert chat.messages == before
    with chat_repl._last_message(chat) as message:
        chat.say(message)
    assert len(chat.messages) == 2


def test_what_is_answered_again_in_less_room_is_kept_and_what_is_not_is_as_it_was(endless: Any, tokenizer: Any) -> None:
    notes: list[str] = []
    chat = Chat(endless, tokenizer, sampling=Sampling(max_new_tokens=10), note=notes.append)
    for word in ("w5", "w6", "w7"):
        chat.say(word)
    before = list(chat.messages)
    chat.system = "w9 " * 100  # with which fewer turns find room
    with contextlib.suppress(DavidError), chat_repl._last_message(chat) as message:
        next(chat.comparing(message))
        raise DavidError
    assert chat.messages == before
    with chat_repl._last_message(chat) as message:
        answer = chat.say(message)
    assert notes
    assert len(chat.messages) < len(before)
    assert [its["content"] for its in chat.messages[-2:]] == ["w7", answer.strip()]


def test_what_is_said_meanwhile_stays_and_an_answer_that_has_not_begun_is_none(endless: Any, tokenizer: Any) -> None:
    chat = Chat(endless, tokenizer, sampling=Sampling(max_new_tokens=10))
    slow = chat.stream("w5")
    next(slow)
    chat.say("w6")
    slow.close()  # type: ignore[attr-defined]
    assert [its["content"] for its in chat.messages[::2]] == ["w6", "w5"]
    slow = chat.stream("w7")
    next(slow)
    chat.reset()
    slow.close()  # type: ignore[attr-defined]
    assert [its["content"] for its in chat.messages[::2]] == ["w7"]
    before = list(chat.messages)
    chat.in_use.write = lambda *_, **__: _stopped(chat.in_use)  # type: ignore[method-assign]
    with contextlib.suppress(KeyboardInterrupt), chat_repl._last_message(chat) as message:
        chat.say(message)
    assert chat.messages == before


def _stopped(voice: Any) -> Iterator[str]:
    """An answer that a person stops before its first token."""
    voice.answer = Answer(voice.name, "", 0, 3, 3, 0.1, False)
    yield from ()
    raise KeyboardInterrupt


def test_the_cache_has_the_name_that_transformers_gives_it() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        assert CACHE in model(torch.arange(3, 9)[None], use_cache=True)
