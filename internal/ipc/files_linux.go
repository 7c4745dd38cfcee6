package ipc

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
)

// upgradeProtocol names the switch from HTTP to messages with descriptors.
const upgradeProtocol = "roost-files"

// maxFiles is how many descriptors one message may carry (SCM_MAX_FD is 253).
const maxFiles = 128

// maxMessage bounds a message: an exec order with its environment.
const maxMessage = 256 << 10

// PeerCredentials asks the kernel who connected.
func PeerCredentials(c *net.UnixConn) (Credentials, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Credentials{}, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Credentials{}, err
	}
	if credErr != nil {
		return Credentials{}, credErr
	}
	return Credentials{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, nil
}

// Conn is a connection that carries JSON messages with descriptors, both ways.
// One goroutine may send while another receives.
type Conn struct {
	u *net.UnixConn
}

// Upgrade turns a request into a Conn; the caller closes it.
func Upgrade(w http.ResponseWriter, r *http.Request) (*Conn, error) {
	if r.Header.Get("Upgrade") != upgradeProtocol {
		return nil, root.Errorf(root.Invalid, "this path needs the header Upgrade: %s", upgradeProtocol)
	}
	c, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok || buf.Reader.Buffered() > 0 {
		return nil, errors.Join(root.Errorf(root.Invalid, "an upgrade needs a unix socket and no early data"), c.Close())
	}
	if _, err := fmt.Fprintf(u, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", upgradeProtocol); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &Conn{u: u}, nil
}

// Connect opens a Conn to path on the socket. The Conn is closed when ctx ends.
func (c *Client) Connect(ctx context.Context, path string) (_ *Conn, err error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", c.path)
	if err != nil {
		return nil, &root.Error{Kind: root.Unavailable, Message: "the platform process behind " + c.path + " does not answer", Err: err}
	}
	u := nc.(*net.UnixConn)
	defer func() {
		if err != nil {
			err = errors.Join(err, u.Close())
		}
	}()
	if _, err := fmt.Fprintf(u, "GET %s HTTP/1.1\r\nHost: roost\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", path, upgradeProtocol); err != nil {
		return nil, err
	}
	// The answer is read byte by byte: what follows it may come with descriptors.
	resp, err := http.ReadResponse(bufio.NewReaderSize(oneByteReader{u}, 16), nil)
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	context.AfterFunc(ctx, func() { _ = u.Close() })
	return &Conn{u: u}, nil
}

type oneByteReader struct{ c net.Conn }

func (r oneByteReader) Read(p []byte) (int, error) { return r.c.Read(p[:1]) }

// Send sends one message and hands over copies of files; the caller's stay open.
func (c *Conn) Send(v any, files ...*os.File) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > maxMessage || len(files) > maxFiles {
		return root.Errorf(root.TooLarge, "a message of %d bytes and %d files is too large", len(data), len(files))
	}
	fds := make([]int, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		// Not f.Fd(): that would make the descriptor blocking.
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return err
		}
	}
	defer runtime.KeepAlive(files)
	head := fmt.Appendf(nil, "%08x", len(data))
	if _, _, err := c.u.WriteMsgUnix(head, unix.UnixRights(fds...), nil); err != nil {
		return fmt.Errorf("send files: %w", err)
	}
	if _, err := c.u.Write(data); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// Receive waits for one message. The caller owns the files.
func (c *Conn) Receive(v any) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
			files = nil
		}
	}()
	head := make([]byte, 8)
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	for got := 0; got < len(head); {
		n, oobn, flags, _, err := c.u.ReadMsgUnix(head[got:], oob)
		if err != nil {
			return files, err
		}
		if n == 0 && oobn == 0 {
			return files, root.Errorf(root.Unavailable, "the peer closed the connection")
		}
		got += n
		more, err := parseFiles(oob[:oobn])
		files = append(files, more...)
		if err != nil {
			return files, err
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return files, errors.New("descriptors were lost on the way")
		}
	}
	var size int
	if _, err := fmt.Sscanf(string(head), "%08x", &size); err != nil || size > maxMessage {
		return files, root.Errorf(root.Invalid, "malformed message header %q", head)
	}
	data := make([]byte, size)
	for got := 0; got < size; {
		n, err := c.u.Read(data[got:])
		if err != nil {
			return files, err
		}
		got += n
	}
	return files, json.Unmarshal(data, v)
}

// Close closes the connection; a waiting Receive returns.
func (c *Conn) Close() error { return c.u.Close() }

func parseFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}
