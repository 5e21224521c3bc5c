"""Pictures that take longer than a request: accepted at once, done later, whatever happens to the process.

jobs        what owners do with jobs: submit, look at, fetch, remove
work        how a job's pictures are made, by one workflow of steps each
keeper      a thread that shows that this process lives, takes over from others, forgets what has expired
workflows   the database: jobs as DBOS workflows        files, storage   the pictures
records     what a job is, in the database and for its owner
"""
