"""What jsonargparse says of a mistake in a recipe, as one line."""


def one_line(text: str) -> str:
    r"""jsonargparse's message without its scaffolding.

    >>> one_line("Parser key 'a':\n  Errors:\n    - Option 'b' is not accepted")
    "Parser key 'a': option 'b' is not accepted: correct it in the recipe or on the command line"
    """
    noise = (
        "Does not validate",
        "Subtypes:",
        "Errors:",
        "Expected a <class 'NoneType'>",
        "Expected a path",
        "Given value type:",
        "Given value: NestedArg",
        "Problem with given class_path",
    )
    lines = [line.strip().removeprefix("- ") for line in text.strip().splitlines()]
    kept = [line for line in lines if line and not line.startswith(noise)]
    message = " ".join(kept).replace('Parser key "', "key ").replace('":', ":")
    message = message.replace("Option", "option").rstrip(".")
    kind = "subclass of Module"  # jsonargparse takes functions too, and tells by what they return
    message = message.replace(kind, f"{kind}, nor to a function with the annotation -> nn.Module;")
    return f"{message}: correct it in the recipe or on the command line"
