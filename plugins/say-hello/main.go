// The article's plugin: it greets whoever it is given and reads two messages from the host.
package main

import (
	"strings"

	"github.com/extism/go-pdk"
)

// hostMemoryGet is the host's: the offset of a key in, the offset of its value out.
//
//go:wasmimport extism:host/user hostMemoryGet
func hostMemoryGet(keyOffset uint64) uint64

// messageFromHost reads the host's message under key; it is empty where there is none.
func messageFromHost(key string) string {
	memory := pdk.AllocateString(key)
	value := pdk.FindMemory(hostMemoryGet(memory.Offset()))
	memory.Free()

	buffer := make([]byte, value.Length())
	value.Load(buffer)
	return string(buffer)
}

//go:wasmexport say_hello
func sayHello() int32 {
	pdk.OutputString(strings.Join([]string{
		"👋 Hello " + pdk.InputString(),
		"key: hello, value: " + messageFromHost("hello"),
		"key: message, value: " + messageFromHost("message"),
	}, "\n"))
	return 0
}

func main() {}
