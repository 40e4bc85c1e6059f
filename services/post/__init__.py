"""The post service: posts, comments, likes, shares and their exact counts."""
