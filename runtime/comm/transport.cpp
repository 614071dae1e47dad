#include "runtime/comm/transport.h"

#include <algorithm>
#include <iomanip>
#include <map>
#include <sstream>

#include "runtime/error.h"

namespace longhaul::runtime {
namespace {
struct Missing {
  std::int64_t receive_bytes = 0;
  std::int64_t send_bytes = 0;
};
}  // namespace

void fail_hang(const ExchangeInfo& info, double waited_seconds,
               const std::vector<MissingPeer>& missing) {
  constexpr std::size_t kNamedPeers = 16;
  std::map<int, Missing> peers;
  for (const MissingPeer& message : missing) {
    Missing& peer = peers[message.peer];
    (message.sending ? peer.send_bytes : peer.receive_bytes) += message.bytes;
  }
  std::ostringstream text;
  text << "rank " << info.self << " waited " << std::fixed << std::setprecision(1) << waited_seconds
       << " s in '" << info.what << "' (operation " << info.sequence << " of communicator '"
       << info.communicator << "') for";
  std::size_t named = 0;
  for (const auto& [peer, bytes] : peers) {
    if (named == kNamedPeers) {
      text << " and " << peers.size() - named << " more ranks";
      break;
    }
    text << (named++ == 0 ? " rank " : ", rank ") << peer << " (";
    if (bytes.receive_bytes > 0) text << bytes.receive_bytes << " bytes to receive";
    if (bytes.receive_bytes > 0 && bytes.send_bytes > 0) text << ", ";
    if (bytes.send_bytes > 0) text << bytes.send_bytes << " bytes to send";
    text << ")";
  }
  text << "; that rank is slow, stopped, dead or in another operation (the wait's timeout is "
       << info.timeout_seconds << " s)";
  fail(ExitCode::hang, text.str());
}

SharedPlace Transport::place_of(const std::byte*) const {
  fail(ExitCode::internal, "a rank lends memory over a transport whose ranks share none");
}
const std::byte* Transport::at(const SharedPlace&) const {
  fail(ExitCode::internal, "a rank borrows memory over a transport whose ranks share none");
}

}  // namespace longhaul::runtime
