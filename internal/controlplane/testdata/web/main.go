// Command web is what the machines of the tests run: it answers on port 8080,
// or with "exit CODE" ends, with "env NAME" prints a variable.
package main

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == "exit" {
		code, err := strconv.Atoi(os.Args[2])
		if err != nil {
			code = 255
		}
		fmt.Println("exiting")
		os.Exit(code)
	}
	if len(os.Args) > 2 && os.Args[1] == "env" {
		fmt.Print(os.Getenv(os.Args[2]))
		return
	}
	fmt.Println("ready")
	err := http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }))
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
