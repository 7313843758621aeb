"""What the figures are drawn with: boxes, text and arrows in one style, on a light ground that any page can hold."""

from __future__ import annotations

INK, SOFT, LINE, GROUND = "#1c2733", "#4b5a6b", "#6b7a90", "#ffffff"
BLUE, GREEN, ORANGE, GREY = "#e3ecfb", "#eef7ee", "#fdf0e1", "#f1f1f1"
STRONG = {BLUE: "#4a78c8", GREEN: "#3f9a5a", ORANGE: "#d98324", GREY: "#9aa5b1"}


class Drawing:
    """A figure of a width and a height in pixels."""

    def __init__(self, title: str, width: float, height: float) -> None:
        self.lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" font-family="system-ui, Helvetica, Arial, sans-serif">',
            f"<title>{title}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0.5 L8 4 L0 7.5 z" fill="{LINE}"/></marker></defs>',
            f'<rect width="{width:g}" height="{height:g}" rx="8" fill="{GROUND}"/>',
        ]

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str = GREEN,
        line: str = LINE,
        radius: float = 4,
        dash: bool = False,
    ) -> None:
        """Draws a rectangle."""
        dashes = ' stroke-dasharray="4 3"' if dash else ""
        self.lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}" '
            f'stroke="{line}"{dashes}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12,
        color: str = INK,
        anchor: str = "middle",
        bold: bool = False,
        code: bool = False,
    ) -> None:
        """Writes a line of text whose baseline is at y."""
        text = text.replace("&", "&amp;").replace("<", "&lt;")
        weight = ' font-weight="600"' if bold else ""
        family = ' font-family="ui-monospace, Menlo, DejaVu Sans Mono, monospace"' if code else ""
        self.lines.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size:g}" fill="{color}"{weight}{family}>'
            f"{text}</text>"
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float, dash: bool = False) -> None:
        """Draws an arrow, which leaves and arrives vertically where it does not run level."""
        middle = (y1 + y2) / 2
        path = f"M{x1:g} {y1:g} C{x1:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2:g}" if y1 != y2 else ""
        path = path or f"M{x1:g} {y1:g} L{x2:g} {y2:g}"
        dashes = ' stroke-dasharray="4 3"' if dash else ""
        self.lines.append(
            f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.4" marker-end="url(#tip)"{dashes}/>'
        )

    def bracket(self, x1: float, x2: float, y: float, depth: float = 6) -> None:
        """Draws a bracket below what lies between x1 and x2."""
        path = f"M{x1:g} {y:g} v{depth:g} H{x2:g} v{-depth:g}"
        self.lines.append(f'<path d="{path}" fill="none" stroke="{LINE}"/>')

    def __str__(self) -> str:
        return "\n".join([*self.lines, "</svg>"]) + "\n"
