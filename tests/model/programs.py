"""What stands in a traced program, inner programs included."""

import jax


def equations(jaxpr):
    """Every equation of a jaxpr, and of the jaxprs in the parameters of its equations."""
    for equation in jaxpr.eqns:
        yield equation
        for leaf in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            if is_program(leaf):
                yield from equations(getattr(leaf, "jaxpr", leaf))


def is_program(x):
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def shapes(closed):
    """Shapes of every array that a program makes."""
    return [v.aval.shape for equation in equations(closed.jaxpr) for v in equation.outvars if hasattr(v.aval, "shape")]


def products(closed):
    """Every matrix product of a program."""
    return [equation for equation in equations(closed.jaxpr) if equation.primitive.name == "dot_general"]
