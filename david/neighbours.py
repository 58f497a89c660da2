"""Temporary."""

from david.recipe import Recipe

STEPS = ("drop", "add", "swap", "scale")


def neighbours(recipe, n_layers, *, steps=STEPS, max_visits=None):  # type: ignore
    v = list(recipe)
    out = []
    for s in steps:
        for i in range(len(v)):
            if s == "drop":
                out.append(v[:i] + v[i + 1 :])
            if s == "add":
                out.append(v[:i] + [v[i]] + v[i:])
            if s == "swap" and i + 1 < len(v):
                out.append(v[:i] + [v[i + 1], v[i]] + v[i + 2 :])
            if s == "scale":
                out += [v[:i] + [(v[i][0], x)] + v[i + 1 :] for x in (0.5, 1.0, 2.0)]
    found = [Recipe(*zip(*o)) for o in out if o and (max_visits is None or len(o) <= max_visits)]
    return [r for r in dict.fromkeys(found) if r != recipe]
