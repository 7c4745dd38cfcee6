package client

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// ExecProtocol is the name under which an exec upgrades its connection. Then
// both sides send frames: a byte that says what, four bytes of length (big
// endian), and the payload. The client begins with FrameStart; the server
// ends with FrameEnd.
const ExecProtocol = "roost-exec"

// The frames.
const (
	FrameStdin  byte = 0   // client: input; empty is its end
	FrameStdout byte = 1   // server
	FrameStderr byte = 2   // server
	FrameStart  byte = 's' // client: ExecStart
	FrameResize byte = 'r' // client: Size
	FrameEnd    byte = 'e' // server: ExecEnd
)

// maxFrame bounds a frame, so that a peer cannot make the other side hold more.
const maxFrame = 1 << 20

// FrameWriter writes frames; safe for concurrent use.
type FrameWriter struct {
	mu sync.Mutex // guards w: a frame is not interrupted by another
	w  io.Writer
}

// NewFrameWriter returns a writer of frames to w.
func NewFrameWriter(w io.Writer) *FrameWriter { return &FrameWriter{w: w} }

// Frame sends one frame; longer data becomes several.
func (f *FrameWriter) Frame(kind byte, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		part := data[:min(len(data), maxFrame)]
		buf := append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(part))), part...)
		if _, err := f.w.Write(buf); err != nil {
			return err
		}
		if data = data[len(part):]; len(data) == 0 {
			return nil
		}
	}
}

// JSON sends a document.
func (f *FrameWriter) JSON(kind byte, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return f.Frame(kind, data)
}

// Stream is an io.Writer whose bytes leave as frames of one kind.
func (f *FrameWriter) Stream(kind byte) io.Writer { return &frameStream{f, kind} }

type frameStream struct {
	f    *FrameWriter
	kind byte
}

func (s *frameStream) Write(p []byte) (int, error) {
	if len(p) == 0 { // an empty frame would mean the end
		return 0, nil
	}
	if err := s.f.Frame(s.kind, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// ReadFrame reads the next frame.
func ReadFrame(r io.Reader) (kind byte, data []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes is longer than %d", n, maxFrame)
	}
	data = make([]byte, n)
	_, err = io.ReadFull(r, data)
	return head[0], data, err
}
