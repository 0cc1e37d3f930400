"""`fitune studio`: a page on this machine that shows runs and starts them, and never owns them.

In: a folder of runs, and the folders that the person opened. Out: pages rendered on the server, live parts as server-sent
events, and `fitune` processes of their own that go on when page and server are closed.
Never imports torch: what needs it (plans, data checks, chat) runs as a `fitune … --json` child process.
"""
