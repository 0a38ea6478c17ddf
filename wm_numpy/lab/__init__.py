"""What an agent knows: the judge, reports, pictures, gradient-check cases. It imports training and the rooms above."""
