// Package launch looks at a folder with the source of an app and says how it
// would be run here: it recognises Django, other Python, Go, Node, static sites
// and plain Dockerfiles, and makes the text of a Dockerfile, a .dockerignore
// and a fly.toml as a person would write them, with the reason of each choice.
//
// It reads files and nothing else: no network, no writing, and nothing of the
// source is ever executed. Python is read by a small parser of expressions
// (python.go) that gives up where it does not understand. `roost launch` calls
// Scan, asks the person, and writes the files.
package launch
