"""The made-up kinds and the names of ProsQA."""

_NAMES = "Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren"
_KINDS = (
    "bompus boompus brimpus chorpus dumpus felpus fompus gerpus gorpus grimpus gwompus hilpus impus jelpus jompus"
    " kerpus lempus lorpus numpus quimpus rempus rompus rorpus scrompus shumpus sterpus storpus terpus timpus tumpus"
    " vumpus worpus wumpus yerpus yimpus yumpus zhorpus zumpus"
)
NAMES, KINDS = tuple(_NAMES.split()), tuple(_KINDS.split())
NAME_SYMBOLS = "ABCDEFGHIJKLMNOPQ"
KIND_SYMBOLS = "abcdefghijklmnopqrstuvwxyz0123456789+-"
SYMBOL = dict(zip(NAMES + KINDS, NAME_SYMBOLS + KIND_SYMBOLS, strict=True))
