"""A notebook of all that David shows in a cell."""

import nbformat

CELLS = (
    """from david import Corpus, Recipe, load_model, page, search, space, table, widgets

model, tokenizer = load_model("demo", device="cpu")
windows, others = Corpus.load(tokenizer=tokenizer, window=64).hold_out(2, 4)""",
    "Recipe.from_blocks(12, [(4, 8, 2, 0.5)])",
    "Recipe.from_blocks(30, [(8, 12, 2, 0.3), (20, 24, 3)])",
    "Recipe.from_ratios(80, [(0, 0.3), (0.2, 0.5), (0.4, 0.7), (0.6, 1)])",
    "Recipe(tuple(layer for layer in range(60) for _ in range(2)))",
    """study = search(
    model, windows, space=space.Block(max_length=4, scales=(0.1, 0.5)), held_out=others, n_trials=8, top=3, baseline=2
)""",
    "table.leaderboard(study)",
    "page.show(study, top=3)",
    "widgets.slider(model, tokenizer, windows, block=(8, 12), strength=0.3, tokens=8)",
)


def gallery() -> nbformat.NotebookNode:
    """The notebook, not yet run."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
