"""The library behind `import glioray`: one request type and one function for each verb, for every task.

A request (`requests.py`) says what to do; the module of its verb carries it out. The jobs are the same calls with
flags made from the request types (`glioray.cli`).
"""
