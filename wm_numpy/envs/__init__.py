"""The games, declared, found and made as Gymnasium environments; the dream as one. They import worlds and above."""
