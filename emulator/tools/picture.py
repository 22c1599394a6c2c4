"""The pipeline of a profiled launch as an SVG picture: one row a warp, time in steps, coloured by what it does."""

from __future__ import annotations

from colorsys import hls_to_rgb
from xml.sax.saxutils import escape

from .profile import EXITED, READY, RUNS, Profile

LEFT, TOP, WIDTH, ROW, GAP = 60, 40, 1200, 18, 4
_COLORS = {RUNS: "#222222", READY: "#d9d9d9"}
_MEANING = {RUNS: "runs", READY: "could run, another warp does"}


def svg(found: Profile, cta: tuple[int, int, int] | None = None) -> str:
    """The warps of a CTA; by default of the one that executed most. Raises ValueError for a CTA that did not run."""
    work: dict[tuple[int, int, int], int] = {}
    for (index, _), counts in found.executed.items():
        work[index] = work.get(index, 0) + counts.total()
    cta = max(work, key=work.__getitem__) if cta is None else cta
    if cta not in work:
        raise ValueError(f"CTA {cta} did not run; those that did are {sorted(work)}")
    names = found.barriers()
    rows = {number: found.stays((index, number)) for index, number in sorted(found.timeline) if index == cta}
    sites = sorted({names[state] for stays in rows.values() for *_, state in stays if not isinstance(state, str)})
    waits = {name: _color(i / len(sites)) for i, name in enumerate(sites)}
    scale = WIDTH / found.steps[cta]
    body = [_text(LEFT, TOP - 18, f"{found.kernel}, CTA {cta}: {found.steps[cta]} steps")]
    for position, (number, stays) in enumerate(rows.items()):
        y = TOP + position * (ROW + GAP)
        body.append(_text(0, y + ROW - 5, f"warp {number}"))
        for step, end, state in stays:
            if state != EXITED and end > step:
                label = state if isinstance(state, str) else names[state]
                color = _COLORS.get(label) or waits[label]
                note = f"steps {step} to {end}: {_MEANING.get(label, f'waits for {label}')}"
                body.append(_box(LEFT + step * scale, y, (end - step) * scale, color, note))
    y = TOP + len(rows) * (ROW + GAP) + GAP
    for label, color in {**_COLORS, **waits}.items():
        body.append(_box(LEFT, y, ROW, color))
        body.append(_text(LEFT + ROW + 6, y + ROW - 5, _MEANING.get(label, f"waits for {label}")))
        y += ROW + GAP
    size = f'width="{LEFT + WIDTH + 20}" height="{y + 10}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>\n"])


def _color(hue: float) -> str:
    return "#" + "".join(f"{int(255 * part):02x}" for part in hls_to_rgb(hue, 0.6, 0.65))


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _box(x: float, y: float, width: float, color: str, note: str = "") -> str:
    title = f"<title>{escape(note)}</title>" if note else ""
    return f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW}" fill="{color}">{title}</rect>'
