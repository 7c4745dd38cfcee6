// Package statics serves files of images for [[statics]] without asking a
// machine: the agent mounts a read-only view of each image that is needed, this
// package opens files beneath it. It never wakes anything; a path that names
// no file is the caller's to forward.
//
// What an image contains is its maker's, so nothing in it is trusted: the
// guest path is resolved with the view as root directory, the rest of a path
// beneath the guest path without following any link, and only regular files
// are opened (openat2(2)).
//
// The proxy calls it for each GET and HEAD of an app with statics. It has no
// goroutines. What it keeps, bounded, is what never changes: the tags of files
// by image and path.
package statics
