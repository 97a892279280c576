// A plugin for Extism. Each function after a go:wasmexport can be called by its name.
package main

import "github.com/extism/go-pdk"

// greet reads its input and sets its output. A result other than 0 fails the call.
//
//go:wasmexport greet
func greet() int32 {
	name := pdk.InputString()
	if name == "" {
		pdk.SetErrorString("whom shall I greet?")
		return 1
	}
	pdk.Log(pdk.LogInfo, "greeting "+name)
	pdk.OutputString("Hello, " + name + "!")
	return 0
}

func main() {}
