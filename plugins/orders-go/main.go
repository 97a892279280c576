// Sells a product: what a plugin does with a database and a broker, in Go.
package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/extism/go-pdk"
)

//go:wasmimport extism:host/user hostQuery
func hostQuery(request uint64) uint64

//go:wasmimport extism:host/user hostExecute
func hostExecute(request uint64) uint64

//go:wasmimport extism:host/user hostPublish
func hostPublish(request uint64) uint64

//go:wasmimport extism:host/user hostRequest
func hostRequest(request uint64) uint64

// call gives a request to a function of the host, and returns the reply. A reply that begins with {"error" is a failure.
func call(function func(uint64) uint64, request string) string {
	block := pdk.AllocateString(request)
	defer block.Free()
	reply := pdk.FindMemory(function(block.Offset()))
	defer reply.Free()
	return string(reply.ReadBytes())
}

//go:wasmexport order
func order() int32 {
	id, err := strconv.Atoi(pdk.InputString())
	if err != nil {
		pdk.SetError(err)
		return 1
	}
	found := call(hostQuery, fmt.Sprintf(`{"connection":"db","statement":"productById","params":[%d]}`, id))
	// A message, and its answer, are what follows the first line.
	stock := call(hostRequest, fmt.Sprintf("{\"connection\":\"events\",\"subject\":\"stock.%d\"}\nhow many?", id))
	_, stock, _ = strings.Cut(stock, "\n")
	sold := call(hostExecute, fmt.Sprintf(`{"connection":"db","statement":"sell","params":[%d]}`, id))
	published := call(hostPublish, "{\"connection\":\"events\",\"subject\":\"orders.new\"}\n"+found)
	refused := call(hostPublish, "{\"connection\":\"events\",\"subject\":\"invoices.new\"}\n"+found)
	pdk.OutputString(strings.Join([]string{found, stock, sold, published, refused}, "\n"))
	return 0
}

func main() {}
