"""Families of reasoning-gym 0.1.25 that are no tasks here, and why.

Found by asking every scorer about hostile text, junk, and the answers of other problems. A family
that stands neither here nor in `TASKS` has simply not been wrapped.
"""

_RUNS_CODE = "its scorer runs the answer as Python code"
_NO_ANSWER = "its problems come without an answer, so there is nothing to learn from"

REFUSED: dict[str, str] = {
    "binary_matrix": _RUNS_CODE,
    "intermediate_integration": _RUNS_CODE,
    "n_queens": _RUNS_CODE,
    "polynomial_multiplication": _RUNS_CODE,
    "puzzle24": _RUNS_CODE,
    "simple_integration": _RUNS_CODE,
    "spiral_matrix": _RUNS_CODE,
    "string_insertion": _RUNS_CODE,
    "codeio": "its generator runs programs out of a data file",
    "boxnet": _NO_ANSWER,
    "graph_color": _NO_ANSWER,
    "propositional_logic": _NO_ANSWER,
    "rubiks_cube": _NO_ANSWER,
    "rush_hour": _NO_ANSWER,
    "game_of_life_halting": "its scorer takes any text for correct",
    "coin_flip": "its scorer takes 0 for any probability below 1",
    "complex_arithmetic": "its scorer takes nan for any number",
    "number_sorting": "its scorer takes numbers that are wrong by up to 1",
    "game_of_life": "its scorer breaks off at `{}`, and rewards boards that are nearly right",
    "time_intervals": "its problems hang on the day they are made",
    "bf": "its generator prints",
    "tower_of_hanoi": "its scorer prints",
    "composite": "it only mixes other families",
}
