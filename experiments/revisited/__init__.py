"""Experiments that the position paper Revisiting SASRec (arXiv 2504.09596) proposes."""
