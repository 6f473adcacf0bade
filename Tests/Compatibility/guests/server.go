// server PORT: answers every HTTP request line with as many bytes as its path says. Without libc when linked statically.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"strings"
)

func serve(connection net.Conn) {
	defer connection.Close()
	reader := bufio.NewReader(connection)
	block := bytes.Repeat([]byte("socket"), 10000)
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return
		}
		count := 0
		fmt.Sscanf(line, "GET /%d", &count)
		for strings.TrimSpace(line) != "" {
			if line, err = reader.ReadString('\n'); err != nil {
				return
			}
		}
		fmt.Fprintf(connection, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", count)
		for count > 0 {
			piece := block
			if count < len(piece) {
				piece = piece[:count]
			}
			written, err := connection.Write(piece)
			if err != nil {
				return
			}
			count -= written
		}
	}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		if connection, err := listener.Accept(); err == nil {
			go serve(connection)
		}
	}
}
