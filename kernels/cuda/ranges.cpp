#include "kernels/cuda/ranges.h"

#include <fmt/format.h>
#include <nvtx3/nvToolsExt.h>
#include <nvtx3/nvToolsExtPayload.h>

#include <cstddef>
#include <string>

namespace lathe::cuda {

namespace {

nvtxDomainHandle_t handle(void* domain) {
  return static_cast<nvtxDomainHandle_t>(domain);
}

uint64_t register_schema(nvtxDomainHandle_t domain) {
  nvtxPayloadSchemaEntry_t entries[2] = {};
  entries[0].type = entries[1].type = NVTX_PAYLOAD_ENTRY_TYPE_DOUBLE;
  entries[0].name = "FLOPs", entries[0].offset = offsetof(OpCost, flops);
  entries[1].name = "bytes", entries[1].offset = offsetof(OpCost, bytes);
  nvtxPayloadSchemaAttr_t schema = {};
  schema.fieldMask = NVTX_PAYLOAD_SCHEMA_ATTR_FIELD_NAME | NVTX_PAYLOAD_SCHEMA_ATTR_FIELD_TYPE |
                     NVTX_PAYLOAD_SCHEMA_ATTR_FIELD_ENTRIES |
                     NVTX_PAYLOAD_SCHEMA_ATTR_FIELD_NUM_ENTRIES |
                     NVTX_PAYLOAD_SCHEMA_ATTR_FIELD_STATIC_SIZE;
  schema.name = "cost";
  schema.type = NVTX_PAYLOAD_SCHEMA_TYPE_STATIC;
  schema.entries = entries, schema.numEntries = 2;
  schema.payloadStaticSize = sizeof(OpCost);
  return nvtxPayloadSchemaRegister(domain, &schema);
}

}  // namespace

Ranges::Ranges() : domain_(nvtxDomainCreateA("lathe")), schema_(register_schema(handle(domain_))) {}

void Ranges::push(std::string_view name, const OpCost& cost) {
  std::string text(name);
  const bool costs = cost.flops > 0 || cost.bytes > 0;
  if (costs) text += fmt::format(" ({:.5g} GFLOP, {:.5g} GB)", cost.flops / 1e9, cost.bytes / 1e9);
  nvtxEventAttributes_t attributes = {};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
  attributes.message.ascii = text.c_str();
  const nvtxPayloadData_t payload = {schema_, sizeof(cost), &cost};
  if (costs) {
    attributes.payloadType = NVTX_PAYLOAD_TYPE_EXT;
    attributes.reserved0 = 1;  // payloads
    attributes.payload.ullValue = reinterpret_cast<uint64_t>(&payload);
  }
  nvtxDomainRangePushEx(handle(domain_), &attributes);
}

void Ranges::pop() {
  nvtxDomainRangePop(handle(domain_));
}

}  // namespace lathe::cuda
