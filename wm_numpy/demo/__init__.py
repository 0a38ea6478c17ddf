"""Play inside the dream, in a browser. It imports lab and the rooms above."""
