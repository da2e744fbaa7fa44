"""Search methods, one folder for each family; `METHODS` describes each method."""

# A line on each method, for `--help`; `jaxpart/engine.py` maps the names to the code.
METHODS: dict[str, str] = {
    "auto": "the default: ideals, then searches in turn, solvers in the background, until proven",
    "greedy": "the compiler's heuristic that improvements are measured against",
    "slice": "optimal cuts of node orders, with evolution over the orders",
    "clusters": "groups grown from single nodes, side by side where the graph branches",
    "ideals": "exact dynamic program over the graph's ideals (down-sets), where they are few",
    "exact": "integer program, warm-started by cuts and clusters; for small graphs",
    "random": "the paper's random search: uniform samples made valid",
    "policy": "a graph-attention network proposes moves and learns on the graph",
    "tempering": "moves of nodes, groups and cut points, in parallel chains at many temperatures",
    "paper_annealing": "the paper's simulated annealing: changed labels made valid",
}
