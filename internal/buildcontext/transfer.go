package buildcontext

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	digest "github.com/opencontainers/go-digest"

	root "github.com/roost-run/roost"
)

// maxHeader bounds the line before a blob: digest and size.
const maxHeader = 128

// A stream of blobs is, for each, a line "<digest> <size>" and so many bytes.

// Write sends the wanted blobs of the scanned directory. A file that changed
// since it was scanned gives kind Conflict.
func (s *Scanned) Write(w io.Writer, wanted []digest.Digest) error {
	out := bufio.NewWriterSize(w, 1<<20)
	for _, d := range wanted {
		e, ok := s.byDigest[d]
		if !ok {
			return root.Errorf(root.Invalid, "the builder asks for %s, which this directory does not have", d)
		}
		if err := s.write(out, e); err != nil {
			return err
		}
	}
	return out.Flush()
}

func (s *Scanned) write(w io.Writer, e Entry) error {
	f, err := s.open(e.Path)
	if err != nil {
		return changed(e.Path, err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(w, "%s %d\n", e.Digest, e.Size); err != nil {
		return err
	}
	d := digest.SHA256.Digester()
	n, err := io.Copy(io.MultiWriter(w, d.Hash()), io.LimitReader(f, e.Size))
	if err != nil {
		return fmt.Errorf("send %s: %w", e.Path, err)
	}
	if n != e.Size || d.Digest() != e.Digest {
		s.cache.drop(e.Path)
		return changed(e.Path, nil)
	}
	return nil
}

func changed(name string, err error) error {
	return &root.Error{Kind: root.Conflict, Message: fmt.Sprintf("%s changed while it was being sent: try again", name), Err: err}
}

// ReadBlobs reads a stream of blobs and calls put with each; put reads all of
// it, and checks that its digest is right. It ends with the stream, or with
// put's error; what was put before stays.
func ReadBlobs(r io.Reader, put func(d digest.Digest, size int64, body io.Reader) error) error {
	in := bufio.NewReaderSize(r, 1<<20)
	for {
		line, err := header(in)
		if errors.Is(err, io.EOF) && line == "" {
			return nil
		}
		if err != nil {
			return broken(err)
		}
		name, number, _ := strings.Cut(line, " ")
		d := digest.Digest(name)
		size, err := strconv.ParseInt(number, 10, 64)
		if err != nil || size < 0 || root.Bytes(size) > MaxSize || d.Validate() != nil || d.Algorithm() != digest.SHA256 {
			return root.Errorf(root.Invalid, "the stream of files is damaged: %q is not a digest and a size", clip(line))
		}
		body := io.LimitReader(in, size)
		if err := put(d, size, body); err != nil {
			return err
		}
		if n, err := io.Copy(io.Discard, body); err != nil || n > 0 {
			return fmt.Errorf("build context: %d bytes of %s were not read: %w", n, d, err)
		}
	}
}

// header reads a line without its end; io.EOF only before its first byte.
func header(r *bufio.Reader) (string, error) {
	var b []byte
	for {
		c, err := r.ReadByte()
		if err != nil {
			if errors.Is(err, io.EOF) && len(b) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return string(b), err
		}
		if c == '\n' {
			return string(b), nil
		}
		if b = append(b, c); len(b) > maxHeader {
			return string(b), root.Errorf(root.Invalid, "the stream of files is damaged")
		}
	}
}

func broken(err error) error {
	if root.KindOf(err) != root.Internal {
		return err
	}
	return &root.Error{Kind: root.Invalid, Message: "the stream of files ended in the middle of one: send the rest again", Err: err}
}
