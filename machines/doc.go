// Package machines is the Machines API for app authors: its JSON as Go types,
// and a typed client. It works against Roost and, as far as the two agree,
// against Fly.io.
//
// Inside a machine New needs no options: the API is found through
// FLY_FLAPS_BASE_URL, else at http://_api.internal:4280, and the token in
// FLY_API_TOKEN. Without a token the machine's own socket /.fly/api is used,
// over which an app may read its app's machines and suspend or stop its own
// machine, but not create any.
//
// The package holds no rules of the platform and starts no goroutine. It
// imports the standard library only.
package machines
