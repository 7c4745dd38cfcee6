// Package issue is control's side of TLS: it keeps the certificates of the
// cluster's hostnames, uploaded ones and those it obtains by ACME, and the
// local authority for private names, and streams them to the edge. Challenges
// of certificate authorities are answered from the store, so that any host's
// edge can be asked.
//
// It knows no HTTP routing and no rules about who may: control calls it.
package issue
