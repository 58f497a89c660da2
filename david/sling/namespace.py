"""`David`: the functions of this room under one name."""

from transformers import PreTrainedModel

from david.sling.certificate import Certificate
from david.sling.in_place import AnyRecipe, reset, sling, slung, view
from david.sling.verify import check_model


class David:
    """Run recipes on a loaded model by reference, undo them exactly, and prove that this is right.

    Example:
        >>> with David.slung(model, "0:12, 8:30"):
        ...     model.config.num_hidden_layers
        34
        >>> model.config.num_hidden_layers
        30
    """

    sling = staticmethod(sling)
    reset = staticmethod(reset)
    slung = staticmethod(slung)
    view = staticmethod(view)

    @staticmethod
    def check(model: PreTrainedModel, *, recipe: AnyRecipe | None = None) -> Certificate:
        """Prove on the model in hand that it runs recipes exactly.

        Args:
            model: A transformers causal language model. Afterwards it runs its base.
            recipe: A recipe to check besides the maps that stress every model.

        Returns:
            What was compared, and whether all of it passed; `str()` of it is a page of text.

        Raises:
            RecipeError: The recipe does not fit the model.
            SlingError: The model is of a kind that cannot run recipes.
        """
        return check_model(model, recipe=recipe)
