"""The adjustments once more, as loops over boxes and classes with the `math` module.

Each function takes a box's feature x, its factual logits y (background last), the classifier's
weights w, and options. It returns scores before the background's exemption.
"""

import math

from naive_losses import sigmoid, softmax


def norm(v):
    return math.sqrt(math.fsum(a * a for a in v))


def dot(a, b):
    return math.fsum(p * q for p, q in zip(a, b))


def exempt(y, scores):
    """Share what the factual background leaves among the classes, as ``scores`` do."""
    p_bg = softmax(y)[-1]
    total = math.fsum(scores[:-1])
    return [(1 - p_bg) * s / total for s in scores[:-1]] + [p_bg]


def tde(x, y, w, mean, num_heads, alpha):
    """``w`` is what the classifier multiplies normalised features with."""
    size = len(x) // num_heads
    t = []
    for y_i, w_i in zip(y, w):
        effect = 0.0
        for k in range(num_heads):
            x_k, w_k, m_k = (v[k * size : (k + 1) * size] for v in (x, w_i, mean))
            if norm(x_k) > 0 and norm(m_k) > 0:
                d = [m / norm(m_k) for m in m_k]
                effect += dot(x_k, d) / norm(x_k) * dot(w_k, d)
        t.append(y_i - alpha * effect)
    return softmax(t)


def tau_norm(x, y, w, tau, with_background):
    """``y`` − w·x is the bias."""
    t = []
    for i, (y_i, w_i) in enumerate(zip(y, w)):
        bias = y_i - dot(w_i, x)
        is_kept = i == len(y) - 1 and not with_background
        t.append(y_i if is_kept else dot([v / norm(w_i) ** tau for v in w_i], x) + bias)
    return softmax(t)


def ncm(x, y, w, center, class_means, temperature):
    """A class whose mean is None was never seen."""
    box = [a - c for a, c in zip(x, center)]
    t = [
        -math.inf if mean is None else temperature * dot(box, mean) / norm(box) / norm(mean)
        for mean in class_means
    ]
    return softmax([*t, y[-1]])


def prototypes(x, y, w, center, class_means, images, strength, prior):
    """As for :func:`ncm`; means are relative to the center."""
    seen = [mean for mean in class_means if mean is not None]
    own = [math.fsum(values) / len(seen) for values in zip(*seen)]
    box = [a - c - b for a, c, b in zip(x, center, own)]
    t = [*y]
    for i, (mean, n) in enumerate(zip(class_means, images)):
        if mean is not None:
            mean = [a - b for a, b in zip(mean, own)]
            share = prior / (prior + max(n, 1))
            t[i] += strength * share * dot(box, mean) / norm(box) / norm(mean)
    return softmax(t)


def norcal(x, y, w, counts, gamma):
    p = softmax(y)
    divided = [p_i / max(n, 1) ** gamma for p_i, n in zip(p, counts)] + [p[-1]]
    return [v / sum(divided) for v in divided]


def logit_adjustment(x, y, w, counts, tau):
    counts = [max(n, 1) for n in counts]
    prior = [n / sum(counts) for n in counts]
    return softmax([y_i - tau * math.log(len(counts) * p) for y_i, p in zip(y, prior)] + [y[-1]])


def fracal_shifts(counts):
    counts = [max(n, 1) for n in counts]
    return [math.log10((1 / len(counts)) / (n / sum(counts))) for n in counts]


def fracal(x, y, w, counts, dimensions, strength):
    p = softmax([y_i + s for y_i, s in zip(y, fracal_shifts(counts))] + [y[-1]])
    divided = [p_i / phi**strength for p_i, phi in zip(p, dimensions)] + [p[-1]]
    return [v / sum(divided) for v in divided]


def fracal_sigmoid(x, y, w, counts, dimensions, strength):
    total = sum(phi**strength for phi in dimensions)
    scores = []
    for y_i, s, phi in zip(y, fracal_shifts(counts), dimensions):
        spread = math.log10((1 / len(counts)) / (phi**strength / total))
        scores.append(sigmoid(y_i) * sigmoid(y_i + s + spread))
    return scores


def norcal_sigmoid(x, y, w, counts, gamma):
    scores = []
    for y_i, n in zip(y, counts):
        p = sigmoid(y_i)
        odds = p / (1 - p) / max(n, 1) ** gamma
        scores.append(odds / (1 + odds))
    return scores


def logit_adjustment_sigmoid(x, y, w, counts, tau):
    counts = [max(n, 1) for n in counts]
    prior = [n / sum(counts) for n in counts]
    return [sigmoid(y_i - tau * math.log(len(counts) * p)) for y_i, p in zip(y, prior)]


def tau_norm_sigmoid(x, y, w, tau):
    scores = []
    for y_i, w_i in zip(y[:-1], w):
        bias = y_i - dot(w_i, x)
        scores.append(sigmoid(dot([v / norm(w_i) ** tau for v in w_i], x) + bias))
    return scores


def box_counting_dimension(points):
    """Slope of log N(g) against log g by the normal equations, cells counted in a set."""
    if len(points) < 4:
        return 1.0
    xs, ys = [], []
    for g in range(1, 65):
        if g * g > len(points):
            break
        cells = set()
        for u, v in points:
            cells.add((min(int(u * g), g - 1), min(int(v * g), g - 1)))
        xs.append(math.log(g))
        ys.append(math.log(len(cells)))
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys))
    return max(1.0, above / sum((x - x_mean) ** 2 for x in xs))
