"""The colours of pictures: they differ for the colour-blind too (Okabe and Ito)."""

FRONT, KNEE, REST, PALE, INK = "#0072b2", "#d55e00", "#8a8a8a", "#555555", "#222222"
