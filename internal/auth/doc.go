// Package auth says who a caller is and what it may do: it issues and verifies
// tokens and holds the permission table. It stores nothing: the records come
// through a Source that it is given. It has no goroutines and knows no route;
// the API's table names a Permission for each.
//
// A token is text in four parts:
//
//	roost_d_q7Rf...  32 characters ...0aB3xZ
//	│     │ │                          └ checksum: 6 characters
//	│     │ └ random: 32 characters, 190 bits
//	│     └ scope: o org, a app, d deploy, r read, m machine
//	└ prefix, for people and for scanners of leaked secrets
//
// Random and checksum are base 62, digits first, then upper case, then lower
// case. The checksum is the CRC-32 (IEEE) of everything before it, most
// significant digit first, filled up with 0. It tells a token that was cut or
// mistyped from one that is not ours, without a look at any record; it
// protects nothing. What is stored is the SHA-256 of the whole text: 190
// random bits need no salt and no slow hash. testdata/vectors.json has
// examples for other implementations.
package auth
