// Package appconfig reads an app's config: fly.toml, or the same as fly.json or
// fly.yaml. It finds every problem at once, each with line and column, patches
// the forms that older files use, and converts what a process group is to a
// machine config of the Machines API. It is the only package that knows the
// file's names.
//
// A file goes through four steps: a tree of values with positions (tree.go, one
// reader per format), legacy forms made current ones (legacy.go), the typed
// Config (decode.go), validation (validate.go). Machine, Deploy and Routes say
// what it means.
//
// The command line parses files; the API decodes definitions, which are the
// same config as JSON. The package does no I/O but for reading the config file
// and the files it names, has no goroutines, and all of it may be called
// concurrently, a Config's methods as long as nobody changes it.
//
// Source of names and meanings: fly.io/docs/reference/configuration, and what
// flyctl does where the two differ; docs/COMPATIBILITY.md lists the deviations.
package appconfig
