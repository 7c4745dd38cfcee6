// Package rawtest speaks raw bytes of HTTP/1.1 to an edge and checks how it
// answers: what must be forwarded, and what must be refused because two
// readers could understand it differently. It knows an address only, so that
// every engine of the edge has to pass it.
//
// Behind the address, app "shop" under localhost must answer with Handler.
package rawtest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/roost-run/roost/internal/patience"
)

// Handler is what the app behind the edge has to do: say what arrived.
func Handler(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusTeapot) // what is refused must not get here whole
		return
	}
	fmt.Fprintf(w, "%s %s %q", r.Method, r.URL.RequestURI(), data)
	for name, values := range r.Trailer {
		fmt.Fprintf(w, " %s=%s", name, strings.Join(values, ","))
	}
}

// Case is one connection: what is sent, and the answers that come until the
// server closes it.
type Case struct {
	Name string
	Send string
	Want []string // "200 GET / \"\"": status, then the body where Handler answered
}

const host = "Host: shop.localhost\r\n"

// last ends a connection with a request, to see that the framing before it held.
const last = "GET /last HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n"

const lastAnswer = `200 GET /last ""`

// Cases is the corpus.
var Cases = []Case{
	{"plain", last, []string{lastAnswer}},
	{"pipelined", "GET /1 HTTP/1.1\r\n" + host + "\r\n" + last, []string{`200 GET /1 ""`, lastAnswer}},
	{"body with length", "POST /1 HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nhello" + last, []string{`200 POST /1 "hello"`, lastAnswer}},
	{"empty body with length", "POST /1 HTTP/1.1\r\n" + host + "Content-Length: 0\r\n\r\n" + last, []string{`200 POST /1 ""`, lastAnswer}},
	{"chunked body", "POST /1 HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\n" + last, []string{`200 POST /1 "hello world"`, lastAnswer}},
	{"trailer", "POST /1 HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n" + last, []string{`200 POST /1 "hi" X-Sum=7`, lastAnswer}},
	{"absolute form", "GET http://shop.localhost/1 HTTP/1.1\r\n" + host + "\r\n" + last, []string{`200 GET /1 ""`, lastAnswer}},
	{"odd but valid path", "GET //a/%2e%2e/b?x=%zz HTTP/1.1\r\n" + host + "\r\n" + last, []string{`200 GET //a/%2e%2e/b?x=%zz ""`, lastAnswer}},
	{"HTTP/1.0", "GET /1 HTTP/1.0\r\n" + host + "\r\n", []string{`200 GET /1 ""`}},
	{"HTTP/1.0 keep-alive", "GET /1 HTTP/1.0\r\n" + host + "Connection: keep-alive\r\n\r\n" + last, []string{`200 GET /1 ""`, lastAnswer}},
	{"upgrade that is declined", "GET /1 HTTP/1.1\r\n" + host + "Connection: upgrade\r\nUpgrade: x\r\n\r\n" + last, []string{`200 GET /1 ""`, lastAnswer}},
	{"request that looks like a body", "POST /1 HTTP/1.1\r\n" + host + "Content-Length: 40\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n" + last, []string{`200 POST /1 "GET /smuggled HTTP/1.1\r\nHost: localhost\r"`, "400"}},

	{"length and chunked", "POST / HTTP/1.1\r\n" + host + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG" + last, []string{"400"}},
	{"chunked and length", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nG" + last, []string{"400"}},
	{"two equal lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi" + last, []string{"400"}},
	{"two lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 2\r\nContent-Length: 5\r\n\r\nhi" + last, []string{"400"}},
	{"list of lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 2, 2\r\n\r\nhi" + last, []string{"400"}},
	{"signed length", "POST / HTTP/1.1\r\n" + host + "Content-Length: +2\r\n\r\nhi" + last, []string{"400"}},
	{"negative length", "POST / HTTP/1.1\r\n" + host + "Content-Length: -2\r\n\r\nhi" + last, []string{"400"}},
	{"length in hex", "POST / HTTP/1.1\r\n" + host + "Content-Length: 0x2\r\n\r\nhi" + last, []string{"400"}},
	{"empty length", "POST / HTTP/1.1\r\n" + host + "Content-Length:\r\n\r\n" + last, []string{"400"}},
	{"huge length", "POST / HTTP/1.1\r\n" + host + "Content-Length: 99999999999999999999\r\n\r\n" + last, []string{"400"}},
	{"two codings", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + last, []string{"400"}},
	{"list of codings", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + last, []string{"501"}},
	{"unknown coding", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + last, []string{"501"}},
	{"coding behind a vertical tab", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n" + last, []string{"4xx or 501"}},
	{"chunked in HTTP/1.0", "POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + last, []string{"400"}},
	{"folded header", "GET / HTTP/1.1\r\n" + host + "X-A: b\r\n c\r\n\r\n" + last, []string{"400"}},
	{"folded coding", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + last, []string{"400"}},
	{"bare line feeds", "GET / HTTP/1.1\nHost: shop.localhost\n\n" + last, []string{"400"}},
	{"one bare line feed", "GET / HTTP/1.1\r\n" + host + "X-A: b\nX-C: d\r\n\r\n" + last, []string{"400"}},
	{"bare carriage return", "GET / HTTP/1.1\r\n" + host + "X-A: b\rX-C: d\r\n\r\n" + last, []string{"400"}},
	{"NUL", "GET / HTTP/1.1\r\n" + host + "X-A: b\x00c\r\n\r\n" + last, []string{"400"}},
	{"space before the colon", "POST / HTTP/1.1\r\n" + host + "Content-Length : 2\r\n\r\nhi" + last, []string{"400"}},
	{"no colon", "GET / HTTP/1.1\r\n" + host + "nonsense\r\n\r\n" + last, []string{"400"}},
	{"no name", "GET / HTTP/1.1\r\n" + host + ": nonsense\r\n\r\n" + last, []string{"400"}},
	{"two hosts", "GET / HTTP/1.1\r\n" + host + host + "\r\n" + last, []string{"400"}},
	{"no host", "GET / HTTP/1.1\r\n\r\n" + last, []string{"400"}},
	{"no host in HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", []string{"400"}},
	{"two spaces", "GET  / HTTP/1.1\r\n" + host + "\r\n" + last, []string{"400"}},
	{"no version", "GET /\r\n" + host + "\r\n" + last, []string{"400"}},
	{"unknown version", "GET / HTTP/3.7\r\n" + host + "\r\n" + last, []string{"505"}},
	{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + last, []string{"400"}},
	{"CONNECT", "CONNECT shop.localhost:80 HTTP/1.1\r\n" + host + "\r\n" + last, []string{"405"}},
	{"chunk size is no number", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nzz\r\nhi\r\n0\r\n\r\n" + last, []string{"400"}},
	{"chunk size is signed", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n+2\r\nhi\r\n0\r\n\r\n" + last, []string{"400"}},
	{"chunk size in 0x", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0x2\r\nhi\r\n0\r\n\r\n" + last, []string{"400"}},
	{"chunk size overflows", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\nhi\r\n0\r\n\r\n" + last, []string{"400"}},
	{"chunk size behind a space", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n 2\r\nhi\r\n0\r\n\r\n" + last, []string{"400"}},
	{"chunk line ends in a bare line feed", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n2\nhi\r\n0\r\n\r\n" + last, []string{"400"}},
	{"extension with a bare line feed", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n2;a\nhi\r\n0\r\n\r\n" + last, []string{"400"}},
	{"chunk longer than it says", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n2\r\nhix\r\n0\r\n\r\n" + last, []string{"400"}},
	{"large head", "GET / HTTP/1.1\r\n" + host + "X-A: " + strings.Repeat("a", 80<<10) + "\r\n\r\n", []string{"431"}},
}

// Run sends every case to the edge at addr.
func Run(t *testing.T, addr string) {
	t.Helper()
	for _, c := range Cases {
		t.Run(c.Name, func(t *testing.T) {
			got := c.run(t, addr)
			if !slices.EqualFunc(got, c.Want, matches) {
				t.Errorf("sent %.200q\n got %q\nwant %q", c.Send, got, c.Want)
			}
		})
	}
}

func matches(got, want string) bool {
	if want == "4xx or 501" {
		return got[0] == '4' || got == "501"
	}
	return got == want
}

func (c *Case) run(t *testing.T, addr string) (answers []string) {
	t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(patience.Deadline()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, c.Send); err != nil {
		t.Fatal(err)
	}
	for r := bufio.NewReader(conn); ; {
		if _, err := r.Peek(1); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Errorf("the connection ended in: %v", err)
			}
			return answers
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Errorf("answer %d: %v", len(answers)+1, err)
			return answers
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close() // read to its end
		if err != nil {
			t.Errorf("answer %d: body: %v", len(answers)+1, err)
		}
		a := fmt.Sprint(resp.StatusCode)
		if resp.StatusCode == http.StatusOK {
			a += " " + string(body)
		}
		answers = append(answers, a)
	}
}
