"""Five bodies that attract each other: floating point in pure Python."""
import math
import sys

# Position, velocity and mass of each.
BODIES = [
    ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 1000.0),
    ([10.0, 0.0, 0.5], [0.0, 10.0, 0.0], 1.0),
    ([-15.0, 1.0, 0.0], [0.0, -8.0, 0.2], 2.0),
    ([0.0, 22.0, -1.0], [-6.5, 0.0, 0.0], 0.5),
    ([3.0, -30.0, 0.0], [5.7, 0.0, 0.1], 3.0),
]
PAIRS = [(a, b) for i, a in enumerate(BODIES) for b in BODIES[i + 1:]]
STEP = 0.001


def advance():
    for (p, v, m), (q, w, n) in PAIRS:
        x, y, z = p[0] - q[0], p[1] - q[1], p[2] - q[2]
        square = x * x + y * y + z * z
        pull = STEP / (square * math.sqrt(square))
        v[0] -= x * n * pull
        v[1] -= y * n * pull
        v[2] -= z * n * pull
        w[0] += x * m * pull
        w[1] += y * m * pull
        w[2] += z * m * pull
    for p, v, _ in BODIES:
        p[0] += STEP * v[0]
        p[1] += STEP * v[1]
        p[2] += STEP * v[2]


for _ in range(int(sys.argv[1])):
    advance()
with open("result", "w") as file:
    print([x.hex() for p, _, _ in BODIES for x in p], file=file)
